// One feature: statistics, histograms, next tokens, examples in heat.
const groups = ['Top', 'By quantile', 'Chosen'], forms = ['Stacked', 'Snippet', 'Full']

// The examples, from columns as they lie on the disk
const examples = (head, buffer) => {
  const c = {}
  for (const [k, [type, first, n]] of Object.entries(head.columns ?? {})) c[k] = new kinds[type](buffer, first, n)
  if (!c.ex_group) return []
  let t = 0, v = 0
  return Array.from(c.ex_group, (group, k) => {
    const n = Number(c.ex_n_tok[k]), m = Number(c.ex_n_act[k])
    const values = new Float32Array(n), ranks = new Int32Array(n).fill(-1)
    for (let q = v; q < v + m; q++) { values[c.act_at[q]] = c.act_val[q]; ranks[c.act_at[q]] = Number(c.act_rank[q]) }
    const tokens = Array.from(c.tok.subarray(t, t + n), i => head.texts[i])
    t += n; v += m
    return { k, group: Number(group), peak: Number(c.ex_peak[k]), tokens, values, ranks, doc: head.docs[c.ex_doc[k]] ?? '', key: c.ex_row ? String(c.ex_row[k]) : String(k) }
  })
}

function render({ model, el }) {
  const root = add(el, 'div', 'snb snb-fc')
  const top = add(root, 'div', 'snb-top')
  const prev = button(top, '‹ Previous', 'Previous feature (←)', () => model.send({ step: -1 }))
  const next = button(top, 'Next ›', 'Next feature (→)', () => model.send({ step: 1 }))
  const title = add(top, 'div', 'snb-n')
  title.setAttribute('role', 'heading'); title.setAttribute('aria-level', '3'); title.setAttribute('aria-live', 'polite')
  const number = title.appendChild(document.createTextNode('')), name = add(title, 'span')
  const label = add(top, 'input', 'snb-label')
  label.setAttribute('aria-label', 'label of this feature; Enter keeps it, Escape leaves it as it was'); label.maxLength = 200; label.hidden = true
  const rename = button(top, '✎', 'Edit the label (l)', () => edit())
  const star = button(top, '☆', 'Bookmark (b)', () => model.send({ bookmark: true }))
  star.classList.add('snb-star')
  const asked = new Map() // of numbers, by kind: who waits for the kernel
  const shut = exporter(top, root, { card: () => figured(), numbers: kind => new Promise((good, bad) => {
    const late = setTimeout(() => { asked.delete(kind); bad(new Error('the kernel does not answer; numbers come from it')) }, 20000)
    asked.set(kind, text => { clearTimeout(late); asked.delete(kind); good(text) }); model.send({ numbers: kind })
  }) })
  const why = add(root, 'div', 'snb-why'), note = add(root, 'div', 'snb-c'), stats = add(root, 'div', 'snb-s')
  const charts = add(root, 'div', 'snb-charts')
  const [hist, up, down, effects] = Array.from({ length: 4 }, () => add(charts, 'div'))
  const pick = add(root, 'div', 'snb-pick')
  const group = choice(pick, 'which examples', groups, n => put(model, { group: n }))
  const form = choice(pick, 'how examples are written', forms, n => put(model, { form: n }))
  const breaks = button(pick, '¶', 'Show line breaks', () => put(model, { breaks: !model.get('breaks') }))
  const legend = add(pick, 'span', 'snb-l'), low = add(legend, 'span', '', '0'), _ = add(legend, 'i'), high = add(legend, 'span')
  legend.setAttribute('role', 'img')
  const read = add(root, 'div', 'snb-read')
  const grid = add(root, 'div', 'snb-grid')
  grid.setAttribute('role', 'grid'); grid.setAttribute('aria-readonly', 'true')
  let head = {}, all = [], spans = new Map(), focus = null, brush = null, wait = 0

  const caption = (parent, text) => add(parent, 'div', 'snb-h', text)
  const facts = () => {
    number.data = String(head.feature); name.textContent = ' ' + visible(model.get('label') || head.title)
    note.textContent = visible(head.note ?? ''); note.hidden = !note.textContent
    const told = head.stats ?? [], cut = told.length - (head.said?.n ?? 0)
    explained(why, head.said, told.slice(cut))
    stats.replaceChildren(...told.slice(0, cut).map(([value, interval, text]) => {
      const d = add(null, 'div'), b = add(d, 'b', '', value)
      if (interval) { b.append(' '); add(b, 'small', '', interval) }
      d.append(visible(text))
      return d
    }))
  }
  const marks = () => {
    name.textContent = ' ' + visible(model.get('label') || head.title)
    const on = model.get('bookmarked'), able = model.get('noted')
    star.textContent = on ? '★' : '☆'; star.setAttribute('aria-pressed', on)
    star.hidden = rename.hidden = !able
    prev.hidden = next.hidden = !model.get('steps')
  }
  const edit = () => {
    if (!model.get('noted')) return
    label.value = model.get('label'); label.placeholder = visible(head.title); label.hidden = false; name.hidden = true; label.focus(); label.select()
  }
  const edited = keep => {
    if (label.hidden) return
    const was = document.activeElement === label
    label.hidden = true; name.hidden = false
    if (keep && label.value !== model.get('label')) model.send({ label: label.value })
    if (was) rename.focus()
  }
  label.addEventListener('keydown', e => { if (e.key === 'Enter') edited(true); else if (e.key === 'Escape') edited(false); else { e.stopPropagation(); return } e.preventDefault(); e.stopPropagation() })
  label.addEventListener('blur', () => edited(true))
  root.addEventListener('snb-label', edit)

  // The histogram: dragging over it, or moving its two ends by the arrow keys, chooses the examples
  const h = caption(hist, ''), logs = button(h, 'log', 'Heights by logarithm', () => put(model, { log: !model.get('log') }))
  const text = h.insertBefore(document.createTextNode(''), logs)
  const svg = draw(hist, 'svg', { viewBox: '0 0 300 104', role: 'group' })
  const histogram = () => {
    const d = head.histogram, log = model.get('log')
    logs.setAttribute('aria-pressed', log); logs.hidden = !d
    text.data = d ? 'Activation, when active (drag to choose) ' : 'Activation, when active: never, so there is nothing to count.'
    svg.style.visibility = d ? '' : 'hidden' // keeps its place: nothing jumps
    brush = d && bars(svg, d.lo, d.hi, d.counts, { log })
    if (!d) { svg.replaceChildren(); return }
    svg.setAttribute('aria-label', `histogram of ${d.counts.reduce((a, b) => a + b, 0).toLocaleString('en-US')} values from ${show(d.lo)} to ${show(d.hi)}`)
    brush.box = draw(svg, 'rect', { class: 'chosen', y: 12, height: brush.bottom - 12 })
    brush.ends = [0, 1].map(i => {
      const e = draw(svg, 'rect', { class: 'end', y: 12, height: brush.bottom - 12, width: 3, tabindex: 0, role: 'slider', 'aria-label': i ? 'highest activation chosen' : 'lowest activation chosen', 'aria-valuemin': d.lo, 'aria-valuemax': d.hi })
      e.addEventListener('keydown', k => {
        const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[k.key]
        if (!by) return
        const now = chosen() ?? [d.lo, d.hi], step = (d.hi - d.lo) / d.counts.length
        now[i] = Math.max(d.lo, Math.min(d.hi, now[i] + by * step))
        if (now[0] <= now[1]) put(model, { chosen: now, group: groups[2] })
        k.preventDefault(); k.stopPropagation()
      })
      return e
    })
    choose()
  }
  const chosen = () => { const c = model.get('chosen'); return model.get('group') === groups[2] && c.length === 2 ? [...c] : null }
  const choose = (ends = chosen()) => {
    if (!brush) return
    const d = head.histogram, [a, b] = ends ?? [d.lo, d.hi]
    brush.box.setAttribute('x', brush.x(a)); brush.box.setAttribute('width', ends ? Math.max(0, brush.x(b) - brush.x(a)) : 0)
    brush.all.forEach((r, i) => r.classList.toggle('out', !!ends && !(a <= brush.middle(i) && brush.middle(i) <= b)))
    brush.ends.forEach((e, i) => { const v = [a, b][i]; e.setAttribute('x', brush.x(v) - 1.5); e.classList.toggle('on', !!ends); e.setAttribute('aria-valuenow', v); e.setAttribute('aria-valuetext', show(v, 3)) })
  }
  let drag = null
  const where = e => { const b = svg.getBoundingClientRect(); return brush.value((e.clientX - b.x) / b.width * 300) }
  svg.addEventListener('pointerdown', e => { if (!brush || e.button) return; drag = { from: where(e), x: e.clientX }; svg.setPointerCapture(e.pointerId); e.preventDefault() })
  svg.addEventListener('pointermove', e => { if (drag) choose([drag.from, where(e)].sort((a, b) => a - b)) })
  svg.addEventListener('pointerup', e => {
    if (!drag) return
    const ends = [drag.from, where(e)].sort((a, b) => a - b), far = Math.abs(e.clientX - drag.x) > 3
    drag = null
    if (far) put(model, { chosen: ends, group: groups[2] })
    else if (model.get('chosen').length) put(model, { chosen: [], group: groups[0] })
    else choose()
  })
  svg.addEventListener('pointercancel', () => { drag = null; choose() })

  const tokens = (box, title, rows, why) => {
    box.replaceChildren(); caption(box, title)
    if (!rows) { add(box, 'div', 'snb-c', visible(why)); return }
    if (!rows.length) { add(box, 'div', 'snb-c', 'None.'); return }
    const body = add(add(box, 'table', 'snb-t'), 'tbody')
    body.parentNode.setAttribute('aria-label', title)
    for (const [t, v] of rows) { const r = add(body, 'tr'); fill(add(r, 'td', 'm'), t, true); add(r, 'td', 'r ' + (v < 0 ? 'neg' : 'pos'), show(v, 3, true)) }
  }
  const next_tokens = () => {
    tokens(up, 'Raises these next tokens', head.up, head.no_logits); tokens(down, 'Lowers these', head.down, head.no_logits)
    const d = head.logits
    effects.replaceChildren(); effects.hidden = !d
    if (!d) return
    caption(effects, `Effects on all ${d.counts.reduce((a, b) => a + b, 0).toLocaleString('en-US')} tokens`)
    const s = draw(effects, 'svg', { viewBox: '0 0 300 104', role: 'img', 'aria-label': `histogram of the effects on all tokens, from ${show(d.lo, 3)} to ${show(d.hi, 3)}` })
    bars(s, d.lo, d.hi, d.counts, { log: model.get('log'), signed: true })
  }

  // The examples
  const shown = () => {
    const now = model.get('group')
    if (now === groups[0]) return all.filter(e => e.group === -1)
    if (now === groups[1]) return all.filter(e => e.group !== -1)
    const [lo, hi] = chosen() ?? [-Infinity, Infinity], seen = new Set()
    return all.filter(e => { const v = e.values[e.peak], ok = e.peak >= 0 && lo <= v && v <= hi && !seen.has(e.key); if (ok) seen.add(e.key); return ok }).sort((a, b) => b.values[b.peak] - a.values[a.peak])
  }
  const row = (e, how) => {
    const line = add(null, 'div', 'snb-x ' + how.toLowerCase()), top = e.values[e.peak]
    line.setAttribute('role', 'row')
    const b = add(line, 'b', '', show(top, 3))
    b.title = visible(e.doc); b.setAttribute('role', 'rowheader')
    const text = add(line, 'span'), mine = []
    text.setAttribute('role', 'presentation')
    const parts = how === 'Stacked' ? ['before', 'peak', 'after'].map(c => { const s = add(text, 'span', c); s.setAttribute('role', 'presentation'); return s }) : [text]
    const [a, z] = how === 'Snippet' ? [Math.max(0, e.peak - 12), Math.min(e.tokens.length, e.peak + 6)] : [0, e.tokens.length]
    for (let j = a; j < z; j++) {
      const v = e.values[j], w = head.vmax > 0 && Number.isFinite(v) && v ? Math.round(8 + 72 * Math.min(1, Math.abs(v) / head.vmax)) : 0
      const s = add(parts[parts.length < 2 ? 0 : j < e.peak ? 0 : j === e.peak ? 1 : 2], 'span', 'k' + (w ? v < 0 ? ' n' : ' h' : '') + (j === e.peak ? ' p' : ''))
      if (w) s.style.setProperty('--v', w + '%')
      s.dataset.at = e.k + ',' + j; s.tabIndex = -1; s.setAttribute('role', 'gridcell')
      fill(s, e.tokens[j])
      mine.push(s)
    }
    spans.set(e.k, { e, a, mine, line })
    return line
  }
  const list = () => {
    const now = model.get('group'), how = model.get('form'), rows = model.get('compact') ? [] : shown(), parts = []
    spans = new Map(); focus = null
    let last
    if (now === groups[2] && rows.length) parts.push(add(null, 'div', 'snb-q', chosen() ? `${rows.length.toLocaleString('en-US')} of the stored examples, from ${show(chosen()[0], 3)} to ${show(chosen()[1], 3)}` : `all ${rows.length.toLocaleString('en-US')} stored examples; drag over the histogram to choose`))
    for (const e of rows) {
      if (now !== groups[2] && e.group !== last) { last = e.group; parts.push(add(null, 'div', 'snb-q', visible(head.groups[String(e.group)] ?? ''))) }
      parts.push(row(e, how))
    }
    if (!rows.length) parts.push(add(null, 'div', 'snb-c', now === groups[2] && all.length ? 'No stored example lies in this range; choose a wider one.' : visible(head.empty ?? '')))
    grid.replaceChildren(...parts)
    const first = rows.length && spans.get(rows[0].k).mine[0]
    if (first) { first.tabIndex = 0; focus = first }
    group(now); form(how)
    const on = model.get('breaks')
    breaks.setAttribute('aria-pressed', on); root.classList.toggle('breaks', on && how !== 'Stacked')
    high.textContent = show(head.vmax ?? 0, 3); legend.style.visibility = all.length ? '' : 'hidden'
    legend.setAttribute('aria-label', `colour scale from 0 to ${high.textContent}`)
    grid.setAttribute('aria-label', `examples of feature ${head.feature}`)
    pick.hidden = grid.hidden = read.hidden = charts.hidden = model.get('compact')
    choose(); mark()
  }
  const span = ([k, j]) => { const s = spans.get(k); return s && s.mine[j - s.a] }
  const tell = ([k, j]) => {
    const e = spans.get(k).e, r = e.ranks[j]
    return `${visible(e.tokens[j])} · position ${j} · ${show(e.values[j])}` + (r >= 0 ? ` · rank ${(r + 1).toLocaleString('en-US')}` + (head.n ? ` of ${head.n.toLocaleString('en-US')}` : '') : '')
  }
  const place = s => s.dataset.at.split(',').map(Number)
  // What is under the pointer; where it rests, the kernel tells what the feature does there
  let peeked = new Map(), rest = 0, on = null
  const say = s => {
    on = s; clearTimeout(rest)
    if (!s) { read.textContent = read.title = ''; return }
    const p = place(s), f = peeked.get(p.join()), { doc } = spans.get(p[0]).e
    read.textContent = read.title = tell(p) + (f ? f.text ? '' : effect_words(f) : doc ? ' · ' + visible(doc) : '')
    if (!f && head.effects && spans.get(p[0]).e.values[p[1]]) rest = setTimeout(() => model.send({ peek: p }), 300)
  }
  const heard = m => {
    if (m?.peek && m.feature === head.feature) { peeked.set(m.peek.join(), m.effect); if (on && place(on).join() === m.peek.join()) say(on) }
    else if (m?.numbers) asked.get(m.numbers)?.(m.text)
  }
  const mark = () => {
    for (const s of grid.querySelectorAll('.sel')) { s.classList.remove('sel'); s.removeAttribute('aria-selected') }
    const p = model.get('selected'), s = p.length === 2 && span(p)
    if (s) { s.classList.add('sel'); s.setAttribute('aria-selected', 'true') }
    say(s); effect()
  }
  const select = p => { const now = model.get('selected'); put(model, { selected: now[0] === p[0] && now[1] === p[1] ? [] : p }) }

  // What taking the feature away at the chosen token does; the kernel computes it when a token is chosen
  const box = add(null, 'div', 'snb-effect')
  box.setAttribute('role', 'status')
  const effect = () => {
    const f = model.get('effect'), p = model.get('selected'), s = p.length === 2 && span(p)
    box.remove(); box.replaceChildren()
    if (!s || !f.at || f.at[0] !== p[0] || f.at[1] !== p[1]) return
    if (f.text) add(box, 'div', 'snb-c', visible(f.text))
    else effect_lines(box, f)
    s.closest('.snb-x').after(box)
  }

  const hover = p => { clearTimeout(wait); wait = setTimeout(() => put(model, { hovered: p }), 60) } // often: the kernel hears of it at most every 60 ms
  grid.addEventListener('mouseover', e => { const s = e.target.closest('.k'); if (s) { s.title = tell(place(s)); say(s); hover(place(s)) } })
  grid.addEventListener('mouseleave', () => { mark(); hover([]) })
  const reach = s => { if (!s) return; if (focus) focus.tabIndex = -1; focus = s; s.tabIndex = 0; s.setAttribute('aria-label', tell(place(s))); s.focus() }
  grid.addEventListener('click', e => { const s = e.target.closest('.k'); if (s) { reach(s); select(place(s)) } })
  grid.addEventListener('focusin', e => { const s = e.target.closest('.k'); if (s) { s.setAttribute('aria-label', tell(place(s))); say(s) } })
  grid.addEventListener('keydown', e => {
    const s = e.target.closest('.k')
    if (!s || e.altKey || e.ctrlKey || e.metaKey) return
    const [k, j] = place(s), ks = [...spans.keys()], r = ks.indexOf(k), m = spans.get(k), row = n => spans.get(ks[n])?.mine, i = j - m.a
    if (e.key === 'ArrowRight') reach(m.mine[i + 1] ?? row(r + 1)?.[0])
    else if (e.key === 'ArrowLeft') reach(m.mine[i - 1] ?? row(r - 1)?.at(-1))
    else if (e.key === 'ArrowDown' || e.key === 'ArrowUp') { const to = row(r + (e.key === 'ArrowDown' ? 1 : -1)); reach(to?.[Math.min(i, to.length - 1)]) }
    else if (e.key === 'Home') reach(m.mine[0])
    else if (e.key === 'End') reach(m.mine.at(-1))
    else if (e.key === 'Enter' || e.key === ' ') select([k, j])
    else if (e.key === 'Escape' && model.get('selected').length) put(model, { selected: [] })
    else return
    e.preventDefault(); e.stopPropagation()
  })

  // What the figure is drawn from: the examples that are on the page, as they are cut there
  const figured = () => {
    const how = model.get('form'), now = model.get('group'), rows = shown(), by = new Map()
    const cut = e => {
      const [a, z] = how === 'Snippet' ? [Math.max(0, e.peak - 12), Math.min(e.tokens.length, e.peak + 6)] : [0, e.tokens.length]
      return { label: show(e.values[e.peak], 3), tokens: e.tokens.slice(a, z), values: e.values.subarray(a, z), peak: e.peak - a }
    }
    for (const e of rows) { const k = now === groups[2] ? '' : String(e.group); if (!by.has(k)) by.set(k, []); by.get(k).push(cut(e)) }
    const title = k => k === '' ? grid.querySelector('.snb-q')?.textContent ?? '' : head.groups[k] ?? ''
    return { ...head, title: model.get('label') || head.title, note: [head.note, head.said && `Explained by ${head.said.by}: ${head.said.text}`].filter(Boolean).join(' '), groups: [...by].map(([k, rows]) => ({ title: title(k), rows })) }
  }

  const all_new = () => {
    edited(false); shut(false); peeked = new Map(); say(null)
    head = model.get('head'); all = examples(head, bytes(model.get('data')))
    facts(); marks(); histogram(); next_tokens(); list()
    root.dataset.feature = head.feature
    root.classList.toggle('asks', !!head.effects)
  }
  all_new()
  const off = listen(model, { 'change:version': all_new, 'change:label change:bookmarked change:noted change:steps': marks, 'change:group change:form change:breaks change:chosen change:compact': list,
    'change:log': () => { histogram(); next_tokens() }, 'change:selected': mark, 'change:effect': effect })
  model.on('msg:custom', heard)
  return () => { clearTimeout(wait); clearTimeout(rest); model.off('msg:custom', heard); off() }
}
export default { render }
