// The feature browser of a page without a kernel. What it shows lies in the page; every text goes through textContent.
// `render` is that of tokens.js; parts.js, effect.js and figure.js stand before this.
const column = (text, Kind) => {
  const s = atob(text), b = new Uint8Array(s.length)
  for (let i = 0; i < s.length; i++) b[i] = s.charCodeAt(i)
  return new Kind(b.buffer)
}
// What tokens.js asks of a widget's model
const host = state => {
  const on = {}
  return {
    get: k => state[k], save_changes() {}, send() {}, off() {},
    set(k, v) { state[k] = v; for (const f of on['change:' + k] ?? []) f() },
    on(names, f) { for (const n of names.split(' ')) (on[n] ??= []).push(f) },
  }
}
const about = t => visible(t.trim()) || (t ? '␣'.repeat(Math.min(t.length, 5)) : '∅')
const button = (parent, text, name, act) => {
  const b = add(parent, 'button', 'snb-bt', text)
  b.type = 'button'; b.setAttribute('aria-label', name); b.title = name
  b.addEventListener('click', act)
  return b
}
const choice = (parent, name, values, act) => {
  const box = add(parent, 'span', 'snb-ch')
  box.setAttribute('role', 'group'); box.setAttribute('aria-label', name)
  const all = values.map(v => button(box, v, name + ': ' + v, () => act(v)))
  return v => all.forEach((b, i) => b.setAttribute('aria-pressed', values[i] === v))
}

// What taking the feature away does, by the example's row
const ablated = (f, texts) => {
  const out = new Map(), g = f.gone
  if (!g) return out
  const n = g.up + g.down, rows = column(g.rows, Uint16Array), next = column(g.next, Int32Array), named = column(g.named, Uint32Array), v = column(g.values, Float32Array)
  rows.forEach((row, k) => {
    const told = Array.from({ length: n }, (_, i) => [texts[named[k * n + i]], v[k * (n + 2) + 2 + i]])
    out.set(row, { next: next[k] < 0 ? '' : texts[next[k]], loss: next[k] < 0 ? null : v[k * (n + 2)], loss_without: next[k] < 0 ? null : v[k * (n + 2) + 1], up: told.slice(0, g.up), down: told.slice(g.up), context: g.context })
  })
  return out
}
// The examples of one feature, out of its columns; the sparse values are spread once
const examples = (f, texts) => {
  const lengths = column(f.lengths, Uint16Array), peaks = column(f.peaks, Int16Array), ids = column(f.ids, f.wide ? Uint32Array : Uint16Array)
  const at = column(f.at, Uint32Array), val = column(f.values, Float32Array), all = new Float32Array(ids.length)
  const rank = f.ranks && column(f.ranks, Uint32Array), ranks = rank && new Int32Array(ids.length).fill(-1), gone = ablated(f, texts)
  at.forEach((p, i) => { all[p] = val[i]; if (rank) ranks[p] = rank[i] })
  let from = 0, row = 0
  return f.groups.map(([title, n]) => ({ title, rows: Array.from({ length: n }, () => {
    const to = from + lengths[row], r = { tokens: Array.from(ids.subarray(from, to), t => texts[t]), values: all.subarray(from, to), ranks: ranks?.subarray(from, to), peak: peaks[row], label: f.labels[row], start: 0, gone: gone.get(row) }
    from = to; row++
    return r
  }) }))
}
const snippet = (r, left = 5, right = 3) => {
  if (r.peak < 0) return r
  const a = Math.max(0, r.peak - left), b = r.peak + right + 1
  return { ...r, tokens: r.tokens.slice(a, b), values: r.values.slice(a, b), ranks: r.ranks?.slice(a, b), peak: r.peak - a, start: a }
}

// Bars that can be dragged over; `told` gets [low, high], or null for a click
const bars = (parent, h, name, told) => {
  const W = 300, H = 92, n = h.counts.length, lo = h.ends[0], hi = h.ends[1], top = Math.max(1, ...h.counts)
  const svg = draw(parent, 'svg', { viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': `${name}, from ${show(lo, 3)} to ${show(hi, 3)}, at most ${top.toLocaleString('en-US')} in a bar` })
  const x = v => 4 + (v - lo) / (hi - lo || 1) * (W - 8), y = c => 74 - c / top * 60
  const rects = h.counts.map((c, i) => {
    const a = lo + (hi - lo) * i / n, b = lo + (hi - lo) * (i + 1) / n
    if (!c) return null
    const r = draw(svg, 'rect', { x: x(a).toFixed(1), y: Math.min(y(c), 73).toFixed(1), width: Math.max(.6, x(b) - x(a) - 1).toFixed(1), height: Math.max(.7, 74 - y(c)).toFixed(1), class: 'bar f0' })
    draw(r, 'title', {}, `${show(a, 3)} to ${show(b, 3)}: ${c.toLocaleString('en-US')}`)
    return [r, a, b]
  }).filter(Boolean)
  draw(svg, 'line', { x1: 4, x2: W - 4, y1: 74.5, y2: 74.5, class: 'rule' })
  for (const [v, anchor] of [[lo, 'start'], [(lo + hi) / 2, 'middle'], [hi, 'end']]) draw(svg, 'text', { x: x(v), y: 87, 'text-anchor': anchor, 'font-size': 10 }, show(v, 3))
  draw(svg, 'text', { x: 4, y: 9, 'font-size': 9 }, top.toLocaleString('en-US'))
  if (!told) return () => {}
  const band = draw(svg, 'rect', { y: 12, height: 62, class: 'snb-band', x: 0, width: 0 })
  const value = e => { const r = svg.getBoundingClientRect(); return Math.min(hi, Math.max(lo, lo + ((e.clientX - r.left) / r.width * W - 4) / (W - 8) * (hi - lo))) }
  let from = null
  svg.classList.add('snb-drag')
  svg.addEventListener('pointerdown', e => { from = value(e); svg.setPointerCapture(e.pointerId); e.preventDefault() })
  svg.addEventListener('pointermove', e => { if (from !== null) mark([Math.min(from, value(e)), Math.max(from, value(e))]) })
  svg.addEventListener('pointerup', e => {
    if (from === null) return
    const ends = [Math.min(from, value(e)), Math.max(from, value(e))]
    from = null
    told(ends[1] - ends[0] > (hi - lo) / 100 ? ends : null)
  })
  const mark = ends => {
    band.setAttribute('x', ends ? x(ends[0]) : 0); band.setAttribute('width', ends ? x(ends[1]) - x(ends[0]) : 0)
    for (const [r, a, b] of rects) r.setAttribute('opacity', !ends || b > ends[0] && a < ends[1] ? 1 : .3)
  }
  return mark
}

// The numbers behind a card, as the kernel would write them: names, and one number a row, or JSON
const numbers = (f, groups, texts, kind) => {
  const out = {}, h = f.histogram
  for (const [label, v, lo, hi] of f.stats) out['stats.' + label] = [v, lo, hi]
  if (h) { out['histogram.edges'] = Array.from({ length: h.counts.length + 1 }, (_, i) => i === h.counts.length ? h.ends[1] : h.ends[0] + (h.ends[1] - h.ends[0]) * i / h.counts.length); out['histogram.counts'] = h.counts }
  for (const k of ['up', 'down']) if (f[k]) { out[k + '.token'] = f[k].map(([t]) => texts[t]); out[k + '.effect'] = f[k].map(([, v]) => v) }
  for (const [title, near] of f.near ?? []) { out[`neighbours.${title}.feature`] = near.map(r => r[0]); out[`neighbours.${title}.value`] = near.map(r => r[2]) }
  groups.forEach((g, i) => {
    const all = g.rows.flatMap((r, row) => r.tokens.map((t, j) => [row, j, t, r.values[j], r.ranks ? r.ranks[j] : -1]))
    for (const [k, name] of ['row', 'position', 'token', 'value', 'rank'].entries()) if (k < 4 || all.some(r => r[4] >= 0)) out[`examples.${i}.${name}`] = all.map(r => r[k])
  })
  if (kind === 'json') return JSON.stringify({ kind: 'Card', title: f.title, feature: f.id, numbers: out }, null, 1) + '\n'
  const cell = v => v === null || v === undefined || Number.isNaN(v) ? '' : /[",\r\n]/.test(v) ? `"${String(v).replace(/"/g, '""')}"` : String(v)
  return [['panel', 'row', 'column', 'value'], ...Object.entries(out).flatMap(([k, a]) => a.map((v, i) => [k, i, '', v]))].map(r => r.map(cell).join(',')).join('\r\n') + '\r\n'
}

// A token that stands alone: the spaces at its ends are shown
const alone = (cell, t) => {
  const [, a, body, b] = /^( *)(.*?)( *)$/s.exec(t)
  if (a) add(cell, 'i', 'w', '␣'.repeat(a.length))
  if (body || !t) fill(cell, body)
  if (b) add(cell, 'i', 'w', '␣'.repeat(b.length))
}

const effects = (parent, title, rows, texts) => {
  const box = add(parent, 'div')
  add(box, 'div', 'snb-h', title)
  if (!rows) { add(box, 'div', 'snb-c', 'Unknown: the index was built without a model.'); return }
  const table = add(box, 'table', 'snb-t'), body = add(table, 'tbody')
  table.setAttribute('aria-label', title)
  for (const [t, v] of rows) {
    const tr = add(body, 'tr')
    alone(add(tr, 'td', 'm'), texts[t])
    add(tr, 'td', 'r ' + (v < 0 ? 'neg' : 'pos'), (v > 0 ? '+' : '') + show(v, 3))
  }
}

// The features of the page among the others: a click goes to one
const plane = (parent, data, places, ids, go) => {
  const here = column(places.here, Uint16Array), rest = column(places.rest, Uint16Array), size = 200, at = v => 6 + v / 65535 * (size - 12)
  add(parent, 'div', 'snb-h', 'Map of decoder directions')
  const box = add(parent, 'div', 'snb-st-map'), c = add(box, 'canvas'), svg = draw(box, 'svg', { viewBox: `0 0 ${size} ${size}`, role: 'group', 'aria-label': `map of decoder directions, ${places.by.toUpperCase()}: ${ids.length} features of this page among ${places.n.toLocaleString('en-US')}; the arrow keys go to the nearest one that way` })
  const tip = add(parent, 'div', 'snb-c snb-st-tip')
  c.width = c.height = 2 * size; c.setAttribute('aria-hidden', 'true')
  const paint = () => {
    const g = c.getContext('2d'), n = rest.length / 2
    g.clearRect(0, 0, 2 * size, 2 * size); g.fillStyle = getComputedStyle(box).color; g.globalAlpha = n > 3000 ? .18 : .35
    for (let i = 0; i < rest.length; i += 2) g.fillRect(2 * at(rest[i]) - 1, 2 * (size - at(rest[i + 1])) - 1, 2, 2)
  }
  const dots = ids.map((id, k) => {
    const d = draw(svg, 'circle', { cx: at(here[2 * k]).toFixed(1), cy: (size - at(here[2 * k + 1])).toFixed(1), r: 3 })
    d.dataset.id = id
    return d
  })
  const told = id => { tip.textContent = id === undefined ? 'Dots: features of this page.' : `${id} · ${data(id)}` }
  svg.addEventListener('click', e => { const d = nearest(e); if (d) go(Number(d.dataset.id)) })
  svg.addEventListener('pointermove', e => { const d = nearest(e); svg.style.cursor = d ? 'pointer' : ''; told(d ? Number(d.dataset.id) : undefined) })
  svg.addEventListener('pointerleave', () => told())
  const place = d => [Number(d.getAttribute('cx')), Number(d.getAttribute('cy'))]
  const nearest = e => {
    const b = svg.getBoundingClientRect(), x = (e.clientX - b.x) / b.width * size, y = (e.clientY - b.y) / b.height * size
    return dots.map(d => [Math.hypot(place(d)[0] - x, place(d)[1] - y), d]).filter(([r]) => r < 9).sort((a, b) => a[0] - b[0])[0]?.[1]
  }
  svg.tabIndex = 0
  svg.addEventListener('keydown', e => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key], now = dots.find(d => d.classList.contains('on'))
    if (!way || !now || e.altKey || e.ctrlKey || e.metaKey) return
    const [x, y] = place(now)
    const that = dots.map(d => { const [u, v] = place(d), on = (u - x) * way[0] + (v - y) * way[1], off = Math.abs((u - x) * way[1]) + Math.abs((v - y) * way[0]); return [on + 2 * off, on > .05 && off <= 2 * on, d] }).filter(r => r[1]).sort((a, b) => a[0] - b[0])[0]?.[2]
    if (that) go(Number(that.dataset.id))
    e.preventDefault(); e.stopPropagation()
  })
  told(); requestAnimationFrame(paint)
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => requestAnimationFrame(paint))
  return id => { for (const d of dots) { const on = Number(d.dataset.id) === id; d.classList.toggle('on', on); d.setAttribute('r', on ? 5 : 3); if (on) svg.append(d) } }
}

const start = root => {
  root.dataset.on = '1'
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent), texts = data.texts
  const byId = new Map(data.features.map(f => [f.id, f]))
  const app = add(null, 'div', data.features.some(f => f.gone) ? 'snb-st asks' : 'snb-st')
  const left = add(app, 'div', 'snb-st-l'), main = add(app, 'div', 'snb-st-m'), right = add(app, 'aside', 'snb-st-r')
  right.setAttribute('aria-label', 'features like this one')

  add(left, 'div', 'snb-h', visible(data.title))
  const find = add(left, 'input')
  find.type = 'search'; find.placeholder = 'number, token or text'; find.setAttribute('aria-label', 'search features by number, token, text, label or explanation')
  const order = add(left, 'select')
  order.setAttribute('aria-label', 'order of the list')
  for (const o of ['as chosen', 'by number', 'most often active', 'least often active', 'strongest', ...(data.noted ? ['bookmarked first'] : [])]) add(order, 'option', '', o).value = o
  const list = add(left, 'div', 'snb-st-rows'), count = add(left, 'div', 'snb-c')
  list.setAttribute('role', 'listbox'); list.tabIndex = 0; list.setAttribute('aria-label', data.title); count.setAttribute('aria-live', 'polite')
  const sorts = { 'by number': (a, b) => a.id - b.id, 'most often active': (a, b) => b.density - a.density, 'least often active': (a, b) => a.density - b.density, 'strongest': (a, b) => b.max - a.max, 'bookmarked first': (a, b) => (b.mark ?? 0) - (a.mark ?? 0) }
  const mapped = data.map ? add(right, 'div', 'snb-st-plane') : null, near = add(right, 'div')
  const spot = mapped ? plane(mapped, id => { const f = byId.get(id); return about(f.label || f.title) }, data.map, data.features.map(f => f.id), id => { if (!shown.includes(byId.get(id))) { find.value = ''; fillList() } choose(id) }) : () => {}
  const uid = 'snb-st' + document.querySelectorAll('.snb-st').length

  let now = null, shown = data.features, group = 'Top', look = 'Stacked', ends = null, groups = [], mark = () => {}
  const words = new Map()
  const said = f => {  // what a search looks through
    if (!words.has(f.id)) words.set(f.id, `${f.id} ${f.title} ${f.label ?? ''} ${f.said ?? ''} ${f.explained?.text ?? ''} ${(f.up ?? []).map(([t]) => texts[t]).join(' ')}\n${examples(f, texts)[0]?.rows.map(r => r.tokens.join('')).join('\n') ?? ''}`.toLowerCase())
    return words.get(f.id)
  }
  const fillList = () => {
    const q = find.value.trim().toLowerCase()
    shown = data.features.filter(f => !q || (/^#?\d+$/.test(q) ? String(f.id) === q.replace('#', '') : said(f).includes(q)))
    if (sorts[order.value]) shown = [...shown].sort(sorts[order.value])
    list.replaceChildren(...shown.map(f => {
      const r = add(null, 'div', 'snb-st-row')
      r.id = uid + '-' + f.id; r.dataset.id = f.id; r.setAttribute('role', 'option')
      add(r, 'b', '', String(f.id)); add(r, 'span', f.label ? 'name' : '', (f.mark ? '★ ' : '') + (f.label ? visible(f.label) : about(f.title)))
      const bar = add(r, 'i'); bar.style.width = Math.round(2 + 38 * Math.min(1, Math.max(0, (Math.log10(Math.max(f.density, 1e-6)) + 6) / 6))) + 'px'
      r.title = `${f.id} ${about(f.label || f.title)}, active on ${show(100 * f.density, 3)} % of tokens`
      return r
    }))
    count.textContent = shown.length ? `${shown.length} of ${data.features.length} features on this page` : `Nothing on this page matches “${visible(find.value.trim())}”.`
    point()
    if (shown.length && !shown.includes(now)) choose(shown[0].id)
  }
  const point = () => {
    list.removeAttribute('aria-activedescendant')
    for (const r of list.children) {
      const it = now && Number(r.dataset.id) === now.id
      r.setAttribute('aria-selected', Boolean(it))
      if (it) { list.setAttribute('aria-activedescendant', r.id); list.scrollTop += Math.min(0, r.offsetTop - list.scrollTop - 4) + Math.max(0, r.offsetTop + r.offsetHeight - list.scrollTop - list.clientHeight + 4) }
    }
  }
  const step = d => { const i = shown.indexOf(now), f = shown[i < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, i + d))]; if (f) choose(f.id) }

  const bar = add(main, 'div', 'snb-st-top')
  button(bar, '‹ Previous', 'previous feature', () => step(-1)); button(bar, 'Next ›', 'next feature', () => step(1))
  const head = add(bar, 'div', 'snb-n')
  head.setAttribute('role', 'heading'); head.setAttribute('aria-level', '3'); head.setAttribute('aria-live', 'polite')
  const shut = exporter(bar, main, { card: () => figured(), numbers: kind => numbers(now, groups, texts, kind) })
  const body = add(main, 'div'), pick = add(main, 'div', 'snb-st-pick')
  const groupIs = choice(pick, 'examples', ['Top', 'By quantile', 'In range'], v => { group = v; paint() })
  const lookIs = choice(pick, 'view', ['Stacked', 'Snippet', 'Full'], v => { look = v; paint() })
  const range = add(pick, 'span', 'snb-st-range')
  const [lo, hi] = ['from', 'to'].map(n => { const l = add(range, 'label', '', n + ' '), i = add(l, 'input'); i.type = 'number'; i.step = 'any'; i.addEventListener('change', () => { ends = [Number(lo.value), Number(hi.value)]; paint() }); return i })
  const model = host({ rows: [], values: null, labels: [], peaks: [], heads: [], vmax: 0, title: '', caption: '', empty: '', breaks: false, selected: [], hovered: [], version: 0 })
  const place = add(main, 'div'), box = add(main, 'div', 'snb-effect')
  box.setAttribute('role', 'status')
  let drawn = []
  // the live card asks the kernel; here the page knows the ranks, and the effect where it was computed
  const at = (i, j) => { const r = drawn[i]; return r && r.gone && r.peak === j ? r.gone : null }
  model.set('more', (i, j) => {
    const k = drawn[i]?.ranks?.[j] ?? -1, f = at(i, j)
    return (k >= 0 ? ` · rank ${(k + 1).toLocaleString('en-US')}` + (now.n ? ` of ${now.n.toLocaleString('en-US')}` : '') : '') + (f ? effect_words(f) : '')
  })
  const effect = () => {
    const p = model.get('selected'), f = p.length === 2 && at(...p)
    box.replaceChildren(); box.hidden = !p.length
    if (f) effect_lines(box, f)
    else if (p.length) add(box, 'div', 'snb-c', drawn.some(r => r.gone) ? 'What the feature does here was not computed for this page: it was at the bold tokens of the strongest examples.' : 'What the feature does here is not on this page: it was made without the model.')
    const row = p.length === 2 && place.querySelectorAll('.snb-x')[p[0]]
    if (row) row.after(box); else main.append(box)
  }
  model.on('change:selected', effect)
  render({ model, el: place })
  const figured = () => ({ feature: now.id, title: now.label || now.title, note: [now.note, now.explained && `Explained by ${now.explained.by}: ${now.explained.text}`].filter(Boolean).join(' '), vmax: now.vmax, up: now.up?.map(([t, v]) => [texts[t], v]), down: now.down?.map(([t, v]) => [texts[t], v]),
    stats: now.stats.map(([label, v, a, b, note]) => [(typeof v === 'number' ? show(v, 3) : v ?? '–') + (label.startsWith('% ') ? ' %' : ''), a === null ? '' : `[${show(a, 3)}, ${show(b, 3)}]`, label.replace(/^% /, '') + (note ? ', ' + note : '')]),
    histogram: now.histogram?.counts.some(c => c) ? { lo: now.histogram.ends[0], hi: now.histogram.ends[1], counts: now.histogram.counts } : null, groups: rows().filter(g => g.rows.length),
    near: (now.near ?? []).map(([title, near]) => `${title}: ` + near.map(([j, , v]) => `${j} (${show(v, 2)})`).join(', ')) })

  const rows = () => {
    const all = group === 'Top' ? groups.slice(0, 1) : group === 'By quantile' ? groups.slice(1) : [chosen()]
    return look === 'Snippet' ? all.map(g => ({ ...g, rows: g.rows.map(r => snippet(r)) })) : all
  }
  const chosen = () => {
    const [a, b] = ends ?? now.histogram?.ends ?? [-Infinity, Infinity], seen = new Set(), out = []
    for (const r of groups.flatMap(g => g.rows)) {
      const v = r.values[r.peak], key = v + '|' + r.peak + '|' + r.tokens.join('\u0000')
      if (v >= a && v <= b && !seen.has(key)) { seen.add(key); out.push(r) }
    }
    return { title: `${out.length} of the stored examples, from ${show(a, 3)} to ${show(b, 3)}`, rows: out.sort((p, q) => q.values[q.peak] - p.values[p.peak]) }
  }
  const paint = () => {
    groupIs(group); lookIs(look); range.hidden = group !== 'In range'
    mark(group === 'In range' ? ends : null)
    const shownNow = rows(), flat = shownNow.flatMap(g => g.rows), heads = []
    drawn = flat
    let n = 0
    for (const g of shownNow) { if (g.rows.length) heads.push([n, g.title]); n += g.rows.length }
    const values = new Float32Array(flat.reduce((s, r) => s + r.tokens.length, 0))
    flat.reduce((s, r) => { values.set(r.values, s); return s + r.tokens.length }, 0)
    for (const [k, v] of Object.entries({ selected: [], rows: flat.map(r => r.tokens), labels: flat.map(r => r.label), peaks: flat.map(r => r.peak), heads, values, vmax: now.vmax, breaks: look === 'Full',
      empty: now.note || (group === 'In range' ? 'No stored example lies in this range; choose a wider one.' : 'No examples: the feature was never active on the indexed tokens.') })) model.set(k, v)
    model.set('version', model.get('version') + 1)
    place.classList.toggle('snb-snip', look === 'Snippet')
    if (look === 'Stacked') stack()
  }
  // Peaks under one another: what stands before, the peak, what comes after
  const stack = () => [...place.querySelectorAll('.snb-x')].forEach((line, i) => {
    const text = line.lastElementChild, tokens = [...text.children], peak = drawn[i].peak
    line.classList.add('stacked')
    text.replaceChildren(...[['before', 0, peak], ['peak', peak, peak + 1], ['after', peak + 1]].map(([c, a, z]) => { const s = add(null, 'span', c); s.setAttribute('role', 'presentation'); s.append(...tokens.slice(Math.max(0, a), z)); return s }))
  })

  const choose = id => {
    const f = byId.get(id)
    if (!f) return
    now = f; ends = null; shut(false); spot(id)
    if (group === 'In range') group = 'Top'
    groups = examples(f, texts)
    head.dataset.card = f.id; head.replaceChildren(String(f.id)); add(head, 'span', '', (f.mark ? '★ ' : '') + (f.label ? visible(f.label) : about(f.title)))
    body.replaceChildren(); near.replaceChildren(); mark = () => {}
    const told = ([label, v, a, b, note]) => [(typeof v === 'number' ? show(v, 3) : visible(v ?? '–')) + (label.startsWith('% ') ? ' %' : ''), a === null ? '' : `[${show(a, 3)}, ${show(b, 3)}]`, label.replace(/^% /, '') + (note ? ', ' + note : '')]
    const cut = f.stats.length - (f.explained?.n ?? 0)
    explained(add(body, 'div', 'snb-why'), f.explained, f.stats.slice(cut).map(told))
    if (f.note) add(body, 'div', 'snb-c', visible(f.note))
    if (f.said) add(body, 'div', 'snb-said', visible(f.said))
    const stats = add(body, 'div', 'snb-s')
    for (const [value, interval, text] of f.stats.slice(0, cut).map(told)) {
      const d = add(stats, 'div'), big = add(d, 'b', '', value)
      if (interval) add(big, 'small', '', ' ' + interval)
      d.append(visible(text))
    }
    const charts = add(body, 'div', 'snb-g')
    if (f.histogram) {
      const box = add(charts, 'div')
      add(box, 'div', 'snb-h', f.histogram.counts.some(c => c) ? 'Activation (drag to choose)' : 'Activation, when active: never, so there is nothing to count.')
      if (f.histogram.counts.some(c => c)) mark = bars(box, f.histogram, 'activation, when active', e => { ends = e; group = e ? 'In range' : 'Top'; if (e) [lo.value, hi.value] = e.map(v => v.toPrecision(4)); paint() })
      if (f.effects) { add(box, 'div', 'snb-h', 'Direct effect on all tokens'); bars(box, f.effects, 'direct effects') }
      ;[lo.value, hi.value] = f.histogram.ends.map(v => v.toPrecision(4))
    }
    if ('up' in f) { effects(charts, 'Raises these next tokens', f.up, texts); effects(charts, 'Lowers these', f.down, texts) }
    for (const [title, some] of f.near ?? []) {
      add(near, 'div', 'snb-h', visible(title))
      const table = add(near, 'table', 'snb-t'), tb = add(table, 'tbody')
      table.setAttribute('aria-label', title)
      for (const [j, t, v] of some) {
        const tr = add(tb, 'tr'), cell = add(tr, 'td')
        if (byId.has(j)) button(cell, String(j), 'show feature ' + j, () => { if (!shown.includes(byId.get(j))) { find.value = ''; fillList() } choose(j) })
        else { cell.textContent = j; cell.title = 'not on this page' }
        if (t !== null) { const c = add(tr, 'td', 'm', about(t)); c.title = c.textContent }
        add(tr, 'td', 'r', v.toFixed(2).replace('-', '−'))
      }
    }
    right.hidden = !mapped && !f.near?.length; app.classList.toggle('alone', right.hidden)
    pick.hidden = place.hidden = !f.groups
    point(); if (f.groups) paint()
  }

  let wait = 0
  find.addEventListener('input', () => { clearTimeout(wait); wait = setTimeout(fillList, 120) })
  find.addEventListener('keydown', e => { if (e.key === 'Escape') find.value = ''; else if (e.key !== 'Enter') return; clearTimeout(wait); fillList(); list.focus(); e.preventDefault() })
  order.addEventListener('change', fillList)
  list.addEventListener('click', e => { const r = e.target.closest('.snb-st-row'); if (r) { list.focus(); choose(Number(r.dataset.id)) } })
  app.addEventListener('keydown', e => {
    if (e.altKey || e.ctrlKey || e.metaKey || e.target.closest('input,select,[role=grid],.snb-export')) return
    const d = { ArrowLeft: -1, ArrowRight: 1 }[e.key] ?? (e.target === list ? { ArrowUp: -1, ArrowDown: 1 }[e.key] : undefined)
    if (d) step(d)
    else if (e.key === '/') { find.focus(); find.select() }
    else return
    e.preventDefault()
  })
  add(app, 'div', 'snb-c snb-st-foot', 'Keys: ← → feature, ↑ ↓ in the list, / search; in the examples arrows walk tokens, Enter chooses one.')
  root.replaceChildren(app)
  fillList()
}
for (const root of document.querySelectorAll('.snb-static:not([data-on])')) start(root)
