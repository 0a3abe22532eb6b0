// Probes as a map of layers and sites, the scores of the chosen one, and the dashboard's card of its direction; before it stand parts.js and `feature_card`.
const score_names = { balanced_accuracy: 'balanced accuracy', codelength: 'code length, bits', compression: 'compression, times', above_untrained: 'above the untrained copy', pr_auc: 'precision–recall area', mcc: 'Matthews correlation', mae: 'mean absolute error', r2: 'R²', spearman: 'rank correlation', f1: 'F1' }
const score_name = m => {
  const kind = Object.entries({ control_: 'control task, ', untrained_: 'untrained copy, ', shuffled_: 'shuffled labels, ' }).find(([k]) => m.startsWith(k))
  return kind ? kind[1] + score_name(m.slice(kind[0].length)) : score_names[m] ?? m.replaceAll('_', ' ')
}

const short = (v, plus = false) => { const s = v.toFixed(Math.abs(v) < 10 ? 2 : 0); return Number(s) === 0 ? '0.00' : (plus && v > 0 ? '+' : '') + s.replace('-', '−') }

// What the card asks of a widget's model; what was chosen on it stays from one direction to the next
const stand_in = told => {
  const on = {}, changed = new Set()
  const state = { head: {}, version: 0, group: 'Top', form: 'Full', breaks: false, log: false, chosen: [], selected: [], hovered: [], effect: {}, label: '', bookmarked: false, noted: false, steps: false, compact: false }
  const fire = (k, ...a) => { for (const f of on[k] ?? []) f(...a) }
  return {
    get: k => state[k], fire,
    set: (k, v) => { state[k] = v; changed.add(k) },
    on: (names, f) => { for (const k of names.split(' ')) (on[k] ??= []).push(f) },
    off: () => {},
    save_changes: () => {
      const now = [...changed]; changed.clear()
      for (const f of new Set(now.flatMap(k => on['change:' + k] ?? []))) f()
      if (now.includes('selected') && state.selected.length) told({ look: state.selected })
    },
    send: told,
    show: (head, data) => {
      Object.assign(state, { head, data, chosen: [], selected: [], hovered: [], effect: {}, group: state.group === 'Chosen' ? 'Top' : state.group, version: state.version + 1 })
      fire('change:version')
    },
  }
}

function render({ model, el }) {
  const get = k => model.get(k), F = get('facts'), scores = new Float32Array(bytes(get('scores'))), M = F.metrics.length
  const [S, T, P] = [F.sites.length, F.tasks.length, F.probes.length]
  const value = (l, s, t, p, m) => { const i = 3 * ((((l * S + s) * T + t) * P + p) * M + m); return m < 0 ? [NaN, NaN, NaN] : scores.subarray(i, i + 3) }
  const some = (l, s, t, p) => F.metrics.some((_, m) => Number.isFinite(value(l, s, t, p, m)[0]))
  const fits = (t, p) => F.layers.some((_, l) => F.sites.some((_, s) => some(l, s, t, p)))
  const at = () => [F.layers.indexOf(get('layer')), F.sites.indexOf(get('site')), F.tasks.indexOf(get('task')), F.probes.findIndex(p => p[0] === get('probe'))]
  const metric = (p = at()[3]) => F.metrics.indexOf(get('metric') || F.probes[p][2])
  const place = (l, s) => F.layers[l] === null ? F.sites[s] : `${F.sites[s]}, layer ${F.layers[l]}`
  const interval = ([, lo, hi]) => Number.isFinite(lo) && Number.isFinite(hi) ? `[${show(lo, 3)}, ${show(hi, 3)}]` : ''

  const all = add(el, 'div', 'snb-pa-all'), root = add(all, 'div', 'snb snb-panel snb-pa')
  root.setAttribute('role', 'region')
  root.setAttribute('aria-label', `probes of ${F.model}`)
  const top = add(root, 'div', 'snb-b')
  add(top, 'span', 'snb-n', `Probes of ${visible(F.model)}`); add(top, 'span', 'sp')
  const select = (label, act) => {
    const l = add(top, 'label', 'snb-f'), e = add(l, 'select')
    l.prepend(`${label} `); e.setAttribute('aria-label', label)
    e.addEventListener('keydown', k => k.stopPropagation())
    e.addEventListener('change', () => act(Number(e.value)))
    return { label: l, fill: (names, now) => { e.replaceChildren(...names.map(([i, n]) => { const o = add(null, 'option', '', n); o.value = i; return o })); e.value = now } }
  }
  const known = (t, p) => F.metrics.map((_, m) => m).filter(m => F.layers.some((_, l) => F.sites.some((_, s) => Number.isFinite(value(l, s, t, p, m)[0]))))
  const choose = (t, p) => {
    if (!fits(t, p)) p = Math.max(0, F.probes.findIndex((_, q) => fits(t, q)))
    put(model, { task: F.tasks[t], probe: F.probes[p][0], metric: get('metric') && known(t, p).includes(F.metrics.indexOf(get('metric'))) ? get('metric') : '' })
  }
  const task = select('task', t => choose(t, at()[3])), probe = select('probe', p => choose(at()[2], p))
  const shade = select('colour', m => put(model, { metric: m < 0 ? '' : F.metrics[m] }))

  const split = add(root, 'div', 'snb-pa-s'), left = add(split, 'div', 'snb-pa-l'), right = add(split, 'div', 'snb-pa-r')
  const grid = add(left, 'div', F.layers.length > 14 ? 'snb-pa-g tight' : 'snb-pa-g')
  grid.setAttribute('role', 'grid'); grid.style.setProperty('--n', F.layers.length)
  const head = add(grid, 'div', 'snb-pa-w'); head.setAttribute('role', 'row')
  add(head, 'span', 'snb-pa-h', F.layers.some(l => l !== null) ? 'layer' : '').setAttribute('role', 'columnheader')
  for (const l of F.layers) add(head, 'span', 'snb-pa-h', l === null ? '–' : String(l)).setAttribute('role', 'columnheader')
  const cells = F.sites.map((site, s) => {
    const row = add(grid, 'div', 'snb-pa-w'); row.setAttribute('role', 'row')
    add(row, 'span', 'snb-pa-h', site).setAttribute('role', 'rowheader')
    return F.layers.map((_, l) => {
      const c = add(row, 'div', 'snb-pa-c'); c.setAttribute('role', 'gridcell'); c.tabIndex = -1; c.dataset.at = `${l},${s}`
      add(c, 'b'); add(c, 'small')
      return c
    })
  })
  const read = add(left, 'div', 'snb-read'), legend = add(left, 'div', 'snb-l'), caption = add(left, 'div', 'snb-c')
  legend.setAttribute('role', 'img')
  const [low, , high] = [add(legend, 'span'), add(legend, 'i'), add(legend, 'span')], of = add(legend, 'span')

  // Why a cell is empty
  const why = (l, s, t, p, m) => {
    const [name, numbers] = F.probes[p], what = visible(F.tasks[t]), others = F.probes.filter((_, q) => fits(t, q)).map(q => q[0]).join(' or ')
    if (some(l, s, t, p)) return m < 0 || Number.isFinite(value(l, s, t, p, m)[0]) ? '' : `The sweep was made without this score: ${score_name(F.metrics[m])}.`
    if (!fits(t, p)) return F.counts[t] !== numbers ? `${what} is ${F.counts[t] ? 'a count' : 'yes or no'}, which ${name} does not read` + (others ? `; choose ${others}.` : '.') : `${name} was not fitted for ${what}.`
    if (F.layers[l] === null) return `${F.sites[s]} is read layer by layer; this column is for what comes before them.`
    if (F.layers.includes(null) && some(F.layers.indexOf(null), s, t, p)) return `${F.sites[s]} comes before the layers: see its cell in the first column.`
    return 'Nothing was scored here: the sweep did not read this layer at this site.'
  }
  const tell = (l, s) => {
    const [, , t, p] = at(), m = metric(), no = why(l, s, t, p, m), sel = value(l, s, t, p, F.metrics.indexOf('selectivity')), v = value(l, s, t, p, m)
    if (no) return `${place(l, s)}: ${no}`
    return `${place(l, s)}: ${score_name(F.metrics[m])} ${show(v[0], 3)} ${interval(v)}` + (Number.isFinite(sel[0]) && F.metrics[m] !== 'selectivity' ? `, selectivity ${show(sel[0], 3, true)} ${interval(sel)}` : '')
  }
  const paint = () => {
    const [cl, cs, t, p] = at(), m = metric(), mine = F.metrics.indexOf('selectivity'), seen = []
    F.layers.forEach((_, l) => F.sites.forEach((_, s) => F.probes.forEach((_, q) => { const v = value(l, s, t, q, m)[0]; if (Number.isFinite(v)) seen.push(v) }))) // one scale for all probes of a task
    const signed = seen.some(v => v < 0), hi = signed ? Math.max(...seen.map(Math.abs)) : Math.max(...seen), lo = signed ? -hi : Math.min(...seen)
    cells.forEach((row, s) => row.forEach((c, l) => {
      const v = value(l, s, t, p, m)[0], k = value(l, s, t, p, mine)[0], on = l === cl && s === cs, none = !Number.isFinite(v)
      c.className = 'snb-pa-c' + (none ? ' none' : signed && v < 0 ? ' cold' : '')
      c.style.setProperty('--v', none ? '0%' : `${Math.round(8 + 66 * (signed ? Math.abs(v) / (hi || 1) : (v - lo) / (hi - lo || 1)))}%`)
      c.children[0].textContent = none ? '' : Math.abs(v) < 1000 ? short(v) : show(v, 3)
      c.children[1].textContent = none || !Number.isFinite(k) || m === mine ? '' : short(k, true)
      c.tabIndex = on ? 0 : -1; c.title = tell(l, s); c.setAttribute('aria-label', c.title)
      if (on) c.setAttribute('aria-selected', 'true'); else c.removeAttribute('aria-selected')
    }))
    if (cl < 0 || cs < 0) cells[0][0].tabIndex = 0
    grid.setAttribute('aria-label', `${score_name(F.metrics[m])} of ${F.probes[p][0]} for ${visible(F.tasks[t])}, layers across, sites down`)
    legend.className = 'snb-l' + (signed ? ' two' : ''); legend.hidden = !seen.length
    low.textContent = show(lo, 3); high.textContent = show(hi, 3); of.textContent = `${score_name(F.metrics[m])}, all probes of this task${['mae', 'codelength'].includes(F.metrics[m]) ? '; less is better' : ''}`
    legend.setAttribute('aria-label', `colour scale from ${low.textContent} to ${high.textContent}`)
    caption.textContent = (F.layers.length > 14 ? '' : m === mine ? 'Numbers: selectivity, what the score is above that of a control task. ' : `Large: ${score_name(F.metrics[m])}. Small: selectivity, what the headline score is above that of a control task. `) + `${F.tokens.toLocaleString('en-US')} tokens of ${F.docs.toLocaleString('en-US')} unseen documents, seed ${F.seed}.`
    read.textContent = tell(Math.max(0, cl), Math.max(0, cs))
  }

  // The scores of the chosen probe
  const title = add(right, 'div', 'snb-h'), reason = add(right, 'div', 'snb-c'), stats = add(right, 'div', 'snb-s'), svg = draw(right, 'svg', { viewBox: '0 0 340 92', role: 'img' }), list = add(root, 'ul', 'snb-pa-t'), rests = add(root, 'div', 'snb-c')
  title.setAttribute('aria-live', 'polite'); list.setAttribute('aria-label', 'all scores of this probe')
  const compared = v => {
    const h = F.probes[at()[3]][2], rows = [['', 'this probe'], ['control_', 'control task'], ['untrained_', 'untrained copy'], ['shuffled_', 'shuffled labels']].map(([k, n]) => [n, v(k + h)]).filter(([, x]) => Number.isFinite(x[0]))
    svg.replaceChildren(); svg.style.display = rows.length > 1 ? '' : 'none'
    const ends = rows.flatMap(([, x]) => [...x].filter(Number.isFinite)), lo = Math.min(...ends, ...(h === 'r2' ? [0] : [])), hi = Math.max(...ends), x = u => 104 + (u - lo) / (hi - lo || 1) * 190
    svg.setAttribute('viewBox', `0 0 340 ${20 * rows.length + 14}`)
    svg.setAttribute('aria-label', rows.map(([n, u]) => `${n} ${show(u[0], 3)} ${interval(u)}`).join('; '))
    rows.forEach(([n, u], i) => {
      const y = 12 + 20 * i, own = i ? '3' : '0'
      draw(svg, 'text', { x: 96, y: y + 3.5, 'font-size': 11, 'text-anchor': 'end' }, n)
      draw(svg, 'line', { x1: 104, x2: 294, y1: y, y2: y, class: 'rule' })
      if (Number.isFinite(u[1])) draw(svg, 'line', { x1: x(u[1]), x2: x(u[2]), y1: y, y2: y, class: 's' + own, 'stroke-width': 3, opacity: .45, 'stroke-linecap': 'round' })
      draw(svg, 'circle', { cx: x(u[0]), cy: y, r: 4.5, class: 'f' + own })
      draw(svg, 'text', { x: 302, y: y + 3.5, 'font-size': 11, class: i ? '' : 'ink' }, show(u[0], 3))
    })
    draw(svg, 'text', { x: 104, y: 20 * rows.length + 9, 'font-size': 9 }, show(lo, 3)); draw(svg, 'text', { x: 294, y: 20 * rows.length + 9, 'font-size': 9, 'text-anchor': 'end' }, `${show(hi, 3)} ${score_name(h)}`)
  }
  const told = () => {
    const [l, s, t, p] = at(), v = m => value(l, s, t, p, F.metrics.indexOf(m)), h = F.probes[p][2], no = why(l, s, t, p, -1)
    title.textContent = `${visible(F.tasks[t])} at ${place(l, s)}, by ${F.probes[p][0].replaceAll('_', ' ')}`
    reason.textContent = no; reason.hidden = !no
    stats.hidden = list.hidden = rests.hidden = !!no
    svg.style.display = no ? 'none' : ''
    if (no) return
    const items = [[h, score_name(h)], ['selectivity', 'selectivity'], ['above_untrained', 'above the untrained copy'], ['compression', 'times shorter than labels alone']].filter(([m]) => Number.isFinite(v(m)[0]))
    stats.replaceChildren(...items.map(([m, n], i) => { const e = add(null, 'div'), b = add(e, 'b', '', show(v(m)[0], 3, i === 1 || i === 2)); if (interval(v(m))) { b.append(' '); add(b, 'small', '', interval(v(m))) } e.append(n); return e }))
    compared(v)
    const have = [h, ...F.metrics.filter(m => m !== h)].filter(m => Number.isFinite(v(m)[0]))
    list.replaceChildren(...have.map(m => { const e = add(null, 'li'); add(e, 'span', '', score_name(m)); add(e, 'b', '', show(v(m)[0], 3)); add(e, 'small', '', interval(v(m))); e.title = F.rests[F.metrics.indexOf(m)]; return e }))
    rests.textContent = `All scores of this probe: ${F.rests[F.metrics.indexOf(h)]}, 95 %, seed ${F.seed}`
  }

  const go = (l, s, focus) => { put(model, { layer: F.layers[l], site: F.sites[s] }); if (focus) cells[s][l].focus() }
  const where = e => e.target.closest('.snb-pa-c')?.dataset.at.split(',').map(Number)
  grid.addEventListener('click', e => { const c = where(e); if (c) go(...c, true) })
  grid.addEventListener('mouseover', e => { const c = where(e); if (c) read.textContent = tell(...c) })
  grid.addEventListener('mouseleave', () => { const [l, s] = at(); read.textContent = tell(l, s) })
  grid.addEventListener('keydown', e => {
    const c = where(e)
    if (!c || e.altKey || e.ctrlKey || e.metaKey) return
    const [l, s] = c, to = { ArrowLeft: [l - 1, s], ArrowRight: [l + 1, s], ArrowUp: [l, s - 1], ArrowDown: [l, s + 1], Home: [0, s], End: [F.layers.length - 1, s] }[e.key]
    if (!to) return
    go(Math.max(0, Math.min(F.layers.length - 1, to[0])), Math.max(0, Math.min(S - 1, to[1])), true)
    e.preventDefault(); e.stopPropagation()
  })

  // The card of its direction, as the dashboard's
  const under = add(all, 'div', 'snb snb-pa-d'), say = add(under, 'div', 'snb-h'), without = add(under, 'div', 'snb-c'), host = add(all, 'div', 'snb-browser snb-pa-card')
  const inner = stand_in(m => {
    if (m.look) { inner.set('effect', { at: m.look, text: get('still') ? 'What happens without it is not known: a direction rebuilds no activation.' : 'Asking the model …' }); inner.save_changes() }
    if (!get('still')) model.send({ card: m })
  })
  let built = null
  const card = () => {
    const h = get('head'), on = Object.keys(h).length > 0
    host.hidden = !on; without.hidden = on
    say.textContent = !on ? 'Tokens along its direction' : F.counts[at()[2]] ? 'Tokens of which it predicts the largest numbers' : 'Tokens furthest on the yes side of its boundary'; without.textContent = visible(get('why'))
    if (!on) return
    inner.show(h, get('data'))
    if (!built) { built = feature_card({ model: inner, el: host }); if (get('still')) for (const b of host.querySelectorAll('[aria-label="Download CSV"], [aria-label="Download JSON"]')) b.remove() }
  }
  const came = m => {
    if (m.numbers || m.peek) inner.fire('msg:custom', m)
    else if (m.effect && m.version === get('version')) { inner.set('effect', m.effect); inner.save_changes() }
  }
  const fill_in = () => {
    const [, , t, p] = at(), own = F.metrics.indexOf(F.probes[p][2])
    task.fill(F.tasks.map((n, i) => [i, visible(n)]), t); probe.fill(F.probes.map((q, i) => [i, q[0].replaceAll('_', ' ')]), p)
    shade.fill([[-1, score_name(F.probes[p][2])], ...known(t, p).filter(m => m !== own).map(m => [m, score_name(F.metrics[m])])], get('metric') && metric() !== own ? metric() : -1)
  }
  const renew = () => { fill_in(); paint(); told(); root.dataset.at = at().join() }
  renew(); card()
  const off = listen(model, { 'change:layer': renew, 'change:site': renew, 'change:task': renew, 'change:probe': renew, 'change:metric': renew, 'change:version': card, 'msg:custom': came })
  return () => { off(); built?.() }
}

// The kernel of a page that has none: scores and cards lie beside the map
function static_atlas(root) {
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent), on = {}, changed = new Set(), state = { ...data.state, still: true }
  const undo = s => { const b = atob(s), u = new Uint8Array(b.length); for (let i = 0; i < b.length; i++) u[i] = b.charCodeAt(i); return new DataView(u.buffer) }
  const F = state.facts
  state.scores = undo(data.scores)
  const card = () => {
    const key = [F.layers.indexOf(state.layer), F.sites.indexOf(state.site), F.tasks.indexOf(state.task), F.probes.findIndex(p => p[0] === state.probe)].join(), got = data.cards[key]
    state.head = got ? got[0] : {}; state.data = undo(got ? got[1] : ''); state.version++
    state.why = got ? '' : data.found.includes(key) ? data.why.less : data.linear.includes(key) ? data.why.none : data.scored.includes(key) ? `${state.probe} ${data.why.curved}` : data.why.empty
  }
  card()
  render({ el: root, model: {
    get: k => state[k], off: () => {}, send: () => {},
    set: (k, v) => { if (state[k] !== v) { state[k] = v; changed.add(k) } },
    on: (names, f) => { for (const k of names.split(' ')) (on[k] ??= []).push(f) },
    save_changes: () => {
      const now = [...changed]; changed.clear()
      if (now.some(k => k !== 'metric')) { card(); now.push('version') }
      for (const f of new Set(now.flatMap(k => on['change:' + k] ?? []))) f()
    },
  } })
}
export default { render }
