// Paths through two or three dimensions: a step that moves, stretches that are chosen, what the model makes there. One canvas for the paths, one for curves over the steps.
const cividis = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56]]
const levels = 32, dashes = [[], [6, 3], [2, 3], [9, 3, 2, 3]], inks = ['--heat', '--cold', '--mark', '--ink2']
const ramp = (v, dark) => { // the end that would vanish on the page is left out
  const x = (dark ? .28 + .72 * v : .88 * v) * (cividis.length - 1), i = Math.min(cividis.length - 2, Math.floor(x)), w = x - i
  return `rgb(${cividis[i].map((c, k) => Math.round(c + w * (cividis[i + 1][k] - c))).join()})`
}
const nice = (lo, hi, n) => {
  const rough = (hi - lo) / n || 1, mag = 10 ** Math.floor(Math.log10(rough)), by = [1, 2, 2.5, 5, 10].map(s => s * mag).find(s => s >= rough * .999), out = []
  for (let k = Math.ceil(lo / by - 1e-9); k * by <= hi + by * 1e-9 && out.length < 20; k++) out.push(Number((k * by).toPrecision(10)))
  return out
}
const floats = v => new Float32Array(bytes(v))
const picture = (parent, pixels, [h, w, c], label) => {
  const e = add(parent, 'canvas'), g = e.getContext('2d')
  e.width = w; e.height = h; e.setAttribute('role', 'img'); e.setAttribute('aria-label', label)
  const out = g.createImageData(w, h)
  for (let i = 0; i < h * w; i++) for (let k = 0; k < 4; k++) out.data[4 * i + k] = k === 3 ? (c === 4 ? pixels[4 * i + 3] : 255) : pixels[i * c + (c < 3 ? 0 : k)]
  g.putImageData(out, 0, 0)
  return e
}
// One output, whatever it is
const thing = (box, made, label) => {
  box.replaceChildren()
  if (made.error) { add(box, 'div', 'snb-wrong', visible(made.error)); return }
  const raw = new Uint8Array(bytes(made.buffer)), [n, ...size] = made.shape
  const text = () => new TextDecoder().decode(raw)
  if (made.kind === 'image') { const k = size.reduce((a, b) => a * b, 1), all = add(box, 'div', 'snb-tp-p'); for (let i = 0; i < n; i++) picture(all, raw.subarray(i * k, (i + 1) * k), size, n > 1 ? `${label}, ${i + 1} of ${n}` : label) }
  else if (made.kind === 'text') fill(add(box, 'div', 'snb-tp-x'), text())
  else if (made.kind === 'tokens') { const e = add(box, 'div', 'snb-tp-x'); for (const t of JSON.parse(text())) fill(add(e, 'span', 'k'), t) }
  else if (made.kind === 'features') { const e = add(box, 'div', 'snb-tp-f'); for (const i of new Uint32Array(raw.buffer)) add(e, 'span', '', String(i)) ; if (!n) add(e, 'i', 'w', 'no features') }
  else add(box, 'div', 'snb-c', 'Nothing was kept here.')
}

function render({ model, el }) {
  const get = k => model.get(k), still = !!get('still')
  const root = add(el, 'div', 'snb snb-panel snb-tp')
  root.dataset.lmSuppressShortcuts = 'true'
  const bar = add(root, 'div', 'snb-b'), title = add(bar, 'span', 'snb-h')
  add(bar, 'span', 'sp')
  const legend = add(bar, 'span', 'snb-l'), low = add(legend, 'span'), shade = add(legend, 'i'), high = add(legend, 'span')
  legend.setAttribute('role', 'img')
  const hues = add(bar, 'span', 'snb-tp-h')
  const dims = add(bar, 'span', 'snb-tp-d')
  const toggles = add(root, 'div', 'snb-tp-g')
  toggles.setAttribute('role', 'group'); toggles.setAttribute('aria-label', 'groups shown')
  const body = add(root, 'div', 'snb-tp-b'), left = add(body, 'div'), side = add(body, 'div', 'snb-side')
  left.className = 'snb-tp-l'
  const plane = add(left, 'canvas', 'snb-tp-c'), read = add(left, 'div', 'snb-c snb-tp-r')
  plane.tabIndex = 0; plane.setAttribute('role', 'img')
  const whose = add(side, 'div', 'snb-b'), path = add(whose, 'select'), where = add(side, 'div', 'snb-q'), made = add(side, 'div', 'snb-tp-m'), numbers = add(side, 'div', 'snb-tp-n')
  path.setAttribute('aria-label', 'path')
  const part = add(side, 'div', 'snb-tp-s'), partly = add(part, 'div', 'snb-b'), span = add(partly, 'span', 'snb-q'), _ = add(partly, 'span', 'sp'), none = button(partly, '×', 'choose no stretch (Escape)', () => choose([]))
  const strip = add(part, 'div', 'snb-tp-t')
  const over = add(body, 'div', 'snb-tp-o'), named = add(over, 'div', 'snb-b'), curve = add(named, 'select'), value = add(named, 'span', 'snb-c'), chart = add(over, 'canvas', 'snb-tp-c')
  curve.setAttribute('aria-label', 'curve over the steps'); chart.setAttribute('role', 'img')
  const run = add(body, 'div', 'snb-tp-k'), play = button(run, '▶', 'play (space)', () => playing ? stop() : start()), slider = add(run, 'input'), step = add(run, 'span', 'snb-tp-v')
  slider.type = 'range'; slider.min = 0; slider.max = 1; slider.step = 'any'
  const hint = add(root, 'div', 'snb-c'), caption = add(root, 'div', 'snb-c')

  let f, P, S, D, xyz, marks, signal, curves, u, index, groups, of, at = 0, px, ends, size = [0, 0], turn = [.6, .35], drag = null, near = null, playing = 0, paints = null, three = null, seen = {}
  const load = () => {
    f = get('facts'); P = f.names.length; S = f.steps.length; D = f.axes.length
    xyz = floats(get('places')); marks = floats(get('marks')); signal = floats(get('signal')); curves = floats(get('curves'))
    const gaps = f.steps.slice(1).map((s, i) => s - f.steps[i]), whole = f.steps[S - 1] - f.steps[0]
    f.even = S > 2 && Math.max(...gaps) > 20 * Math.min(...gaps) // else most of them would lie on one another
    u = f.steps.map((s, i) => S < 2 ? 0 : f.even ? i / (S - 1) : (s - f.steps[0]) / whole)
    index = new Map(f.steps.map((s, i) => [s, i]))
    groups = [...new Set(f.groups)]; of = f.groups.map(g => groups.indexOf(g))
  }
  const css = getComputedStyle(root), ink = name => seen[name] ??= css.getPropertyValue(name).trim()
  const dark = () => { const m = document.body.dataset.jpThemeLight; return m ? m === 'false' : matchMedia('(prefers-color-scheme: dark)').matches }
  const focus = () => Math.max(0, f.names.indexOf(get('path')))
  const open = p => !get('hidden').includes(f.groups[p])
  const spread = () => { let lo = Infinity, hi = -Infinity; for (const v of signal) if (v === v) { lo = Math.min(lo, v); hi = Math.max(hi, v) } return [lo, hi] }
  const words = s => `${f.step_label} ${show(f.steps[s], 7)}`

  // ---- places on the canvas ----
  const coordinate = (d, p, s) => d < 0 ? u[s] : xyz[(p * S + s) * D + d]
  const project = () => {
    const ds = get('dims')
    ends = ds.map(d => {
      let lo = Infinity, hi = -Infinity
      for (let p = 0; p < P; p++) for (let s = 0; s < S; s++) { const v = coordinate(d, p, s); if (v < lo) lo = v; if (v > hi) hi = v }
      if (d >= 0) for (let i = d; i < marks.length; i += D) { lo = Math.min(lo, marks[i]); hi = Math.max(hi, marks[i]) }
      if (!(lo <= hi)) [lo, hi] = [0, 1]
      const more = (hi - lo) * (ds.length < 3 && d >= 0 ? .04 : 0) || (hi > lo ? 0 : .5)
      return [lo - more, hi + more]
    })
    px = new Float32Array(2 * P * S)
    const v = []
    for (let p = 0; p < P; p++) for (let s = 0; s < S; s++) { ds.forEach((d, k) => v[k] = coordinate(d, p, s)); const [x, y] = spot(v); px[2 * (p * S + s)] = x; px[2 * (p * S + s) + 1] = y }
  }
  const pad = { l: 46, r: 16, t: 12, b: 34 }
  const spot = v => {
    const [w, h] = size, z = v.map((x, k) => (x - ends[k][0]) / (ends[k][1] - ends[k][0] || 1))
    if (v.length < 3) return [pad.l + z[0] * (w - pad.l - pad.r), h - pad.b - z[1] * (h - pad.t - pad.b)]
    const [a, b] = turn, x = 2 * z[0] - 1, y = 2 * z[1] - 1, up = 2 * z[2] - 1, k = Math.min(w, h) / 3.5
    return [w / 2 + k * (x * Math.cos(a) - y * Math.sin(a)), h / 2 - k * (up * Math.cos(b) + (x * Math.sin(a) + y * Math.cos(a)) * Math.sin(b))]
  }
  const fit = (c, w, h) => { const d = devicePixelRatio || 1; if (c.width !== Math.round(w * d) || c.height !== Math.round(h * d)) { c.width = Math.round(w * d); c.height = Math.round(h * d); c.style.height = h + 'px' } const g = c.getContext('2d'); g.setTransform(d, 0, 0, d, 0, 0); g.clearRect(0, 0, w, h); g.globalAlpha = 1; g.setLineDash([]); return g }
  const write = (g, t, x, y, { fill = '--ink2', align = 'left', base = 'middle', px = 11, bold = false, ring = false } = {}) => {
    g.font = `${bold ? 600 : 400} ${px}px ${ink('--sans') || 'sans-serif'}`; g.textAlign = align; g.textBaseline = base
    if (ring) { g.lineWidth = 3; g.lineJoin = 'round'; g.strokeStyle = ink('--bg'); g.setLineDash([]); g.strokeText(t, x, y) }
    g.fillStyle = ink(fill); g.fillText(t, x, y)
  }
  const short = (t, n = 28) => (t = visible(t), t.length > n ? t.slice(0, n - 1) + '…' : t)
  const line = (g, a, b) => { g.beginPath(); g.moveTo(...a); g.lineTo(...b); g.stroke() }
  const axis = d => d < 0 ? f.step_label + (f.even ? ' (checkpoints evenly spaced)' : '') : f.axes[d]
  const ticks = (n, wide) => { // of the steps: [position 0 to 1, words]
    if (f.even) return [...new Set(Array.from({ length: n + 1 }, (_, i) => Math.round(i / n * (S - 1))))].map(i => [u[i], show(f.steps[i], 7)])
    const [a, b] = [f.steps[0], f.steps[S - 1]]
    return S < 2 ? [[0, show(a, 7)]] : nice(a, b, n).map(v => [(v - a) / (b - a), show(v, 7)])
  }
  const frame = (g, ds) => {
    const [w, h] = size
    g.lineWidth = 1; g.strokeStyle = ink('--line')
    if (ds.length < 3) {
      for (const [t, name] of ds[0] < 0 ? ticks(5) : nice(...ends[0], 5).map(v => [v, show(v, 4)])) { const [x] = spot([t, ends[1][0]]); line(g, [x, pad.t], [x, h - pad.b]); write(g, name, x, h - pad.b + 9, { align: 'center' }) }
      for (const v of nice(...ends[1], 5)) { const [, y] = spot([ends[0][0], v]); line(g, [pad.l, y], [w - pad.r, y]); write(g, show(v, 4), pad.l - 6, y, { align: 'right' }) }
      write(g, short(axis(ds[0]), 60), (w + pad.l - pad.r) / 2, h - 7, { align: 'center', fill: '--ink1' })
      g.save(); g.translate(9, (h - pad.b + pad.t) / 2); g.rotate(-Math.PI / 2); write(g, short(axis(ds[1]), 44), 0, 0, { align: 'center', fill: '--ink1' }); g.restore()
      return
    }
    const corner = bits => spot(bits.map((b, k) => ends[k][b]))
    for (let k = 0; k < 3; k++) for (const a of [0, 1]) for (const b of [0, 1]) { const p = [0, 0, 0]; p[(k + 1) % 3] = a; p[(k + 2) % 3] = b; const q = [...p]; q[k] = 1; line(g, corner(p), corner(q)) }
    const mid = [w / 2, h / 2]
    for (let k = 0; k < 3; k++) { // each axis on that edge which lies farthest out, so that words stand beside the paths
      let best = null
      for (const a of [0, 1]) for (const b of [0, 1]) { const p = [0, 0, 0]; p[(k + 1) % 3] = a; p[(k + 2) % 3] = b; const q = [...p]; q[k] = 1; const m = corner(p).map((v, i) => (v + corner(q)[i]) / 2), far = k === 2 ? -m[0] : m[1]; if (!best || far > best.far) best = { far, p, q, m } }
      const [p0, q0] = [corner(best.p), corner(best.q)], away = [best.m[0] - mid[0], best.m[1] - mid[1]], turned = (q0[0] - p0[0]) * away[1] > (q0[1] - p0[1]) * away[0] ? 1 : -1
      const out = [turned * (p0[1] - q0[1]), turned * (q0[0] - p0[0])], n = Math.hypot(...out) || 1, // square to the edge
        place = (x, y, by) => [x + out[0] / n * by, y + out[1] / n * by]
      g.strokeStyle = ink('--ink2'); line(g, corner(best.p), corner(best.q)); g.strokeStyle = ink('--line')
      write(g, short(axis(ds[k]), 26), ...place(...best.m, 24), { align: k === 2 ? 'right' : out[0] / n > .3 ? 'left' : out[0] / n < -.3 ? 'right' : 'center', fill: '--ink1' })
      if (ds[k] >= 0) for (const [t, b] of [[k === 2 ? .06 : .13, 0], [.94, 1]]) { const [p, q] = [corner(best.p), corner(best.q)]; write(g, show(ends[k][b], 3), ...place(...p.map((v, i) => v + t * (q[i] - v)), 11), { align: out[0] / n > .5 ? 'left' : out[0] / n < -.5 ? 'right' : 'center', px: 10 }) }
    }
  }
  // ---- colours ----
  const by = () => get('colour')
  const tints = () => Array.from({ length: levels }, (_, i) => ramp(i / (levels - 1), dark()))
  const level = (p, s, [lo, hi]) => {
    const c = by()
    if (c === 'group') return -1
    const v = c === 'step' ? u[s] : (signal[p * S + s] - lo) / (hi - lo || 1)
    return v === v ? Math.min(levels - 1, Math.floor(v * levels)) : -2
  }
  const hue = (p, l, all) => l === -1 ? ink(inks[of[p] % 4]) : l === -2 ? ink('--ink2') : all[l]
  const dashed = g => by() === 'group' ? dashes[Math.floor(g / 4) % 4] : dashes[g % 4]

  const trace = (g, p, a, b, all, range) => { // runs of one colour each; dashes go on from one to the next
    let i = a, gone = 0
    g.setLineDash(dashed(of[p]))
    while (i < b) {
      const l = level(p, i, range), k = 2 * (p * S + i)
      let j = i + 1, x = px[k], y = px[k + 1], on = x === x
      g.beginPath(); if (on) g.moveTo(x, y)
      const from = gone
      for (; j <= b; j++) {
        const m = 2 * (p * S + j), x1 = px[m], y1 = px[m + 1]
        if (x1 === x1) { if (on) { g.lineTo(x1, y1); gone += Math.hypot(x1 - x, y1 - y) } else g.moveTo(x1, y1); [x, y, on] = [x1, y1, true] } else on = false
        if (level(p, j, range) !== l) break
      }
      g.lineDashOffset = from; g.strokeStyle = hue(p, l, all); g.stroke()
      i = Math.min(j, b)
    }
    g.setLineDash([]); g.lineDashOffset = 0
  }
  const star = (g, x, y, r) => { g.beginPath(); for (let i = 0; i < 10; i++) { const a = Math.PI * (i / 5 - .5), k = i % 2 ? r * .45 : r; g.lineTo(x + k * Math.cos(a), y + k * Math.sin(a)) } g.closePath() }
  const stretch = () => { // [path, first, last] by number, that which is being drawn before that which was chosen
    if (drag?.to !== undefined) return [drag.p, Math.min(drag.s, drag.to), Math.max(drag.s, drag.to)]
    const c = get('chosen')
    return c.length === 3 ? [f.names.indexOf(c[0]), index.get(c[1]), index.get(c[2])] : null
  }
  const paint = () => {
    const w = left.clientWidth
    if (!w) return
    seen = {}
    const h = Math.round(Math.max(240, Math.min(430, w * .72)))
    if (w !== size[0] || h !== size[1] || !px) { size = [w, h]; project() }
    const g = fit(plane, w, h), ds = get('dims'), all = tints(), range = by() === 'signal' ? spread() : [0, 1], me = focus(), c = stretch()
    frame(g, ds)
    g.lineJoin = g.lineCap = 'round'
    const places = []
    for (let i = 0; i < f.marks.length; i++) {
      const m = ds.map(d => d < 0 ? NaN : marks[i * D + d])
      if (m.some(v => v !== v)) continue
      const [x, y] = spot(m)
      g.strokeStyle = ink('--ink2'); g.lineWidth = 1; line(g, [x - 4, y], [x + 4, y]); line(g, [x, y - 4], [x, y + 4])
      places.push([short(f.marks[i]), x, y])
    }
    const order = f.names.map((_, p) => p).filter(p => open(p)).sort((a, b) => (a === me) - (b === me))
    for (const p of order) { g.lineWidth = p === me ? 2 : 1.2; g.globalAlpha = .2; trace(g, p, at, S - 1, all, range) }
    if (c && open(c[0])) { g.globalAlpha = .3; g.lineWidth = 11; g.strokeStyle = ink('--heat'); g.beginPath(); for (let s = c[1]; s <= c[2]; s++) { const k = 2 * (c[0] * S + s); if (px[k] === px[k]) g.lineTo(px[k], px[k + 1]) } g.stroke() }
    for (const p of order) { g.lineWidth = p === me ? 2.4 : 1.3; g.globalAlpha = p === me ? 1 : order.length > 12 ? .6 : .8; trace(g, p, 0, at, all, range) }
    g.globalAlpha = 1
    for (const p of order) {
      const k = 2 * (p * S + at)
      if (px[k] !== px[k]) continue
      g.beginPath(); g.arc(px[k], px[k + 1], p === me ? 5.5 : 3.5, 0, 7); g.fillStyle = hue(p, level(p, at, range), all); g.fill(); g.lineWidth = 1.5; g.strokeStyle = ink('--bg'); g.stroke()
    }
    const k = 2 * (me * S + at), taken = [], free = (x, y, w) => { const b = [x, y - 8, x + w, y + 8], ok = taken.every(o => b[0] > o[2] || b[2] < o[0] || b[1] > o[3] || b[3] < o[1]); if (ok) taken.push(b); return ok }
    const aside = (t, x, y, dx, dy, how) => { g.font = `600 ${how.px ?? 11}px ${ink('--sans') || 'sans-serif'}`; const n = g.measureText(t).width, back = x + dx + n > w - 4, from = back ? x - dx : x + dx; if (free(back ? from - n : from, y + dy, n)) write(g, t, from, y + dy, { ...how, align: back ? 'right' : 'left', ring: true }) } // words that would lie on others are left out; the pointer still finds them
    if (open(me) && px[k] === px[k]) aside(short(f.names[me]), px[k], px[k + 1], 9, -11, { fill: '--ink', bold: true, px: 12 })
    for (const [p, s, label] of f.events) {
      const k = 2 * (p * S + s)
      if (!open(p) || px[k] !== px[k]) continue
      g.globalAlpha = s <= at ? 1 : .35; star(g, px[k], px[k + 1], 7); g.fillStyle = ink(s <= at ? '--ink' : '--bg'); g.fill(); g.lineWidth = 1; g.strokeStyle = ink(s <= at ? '--bg' : '--ink'); g.stroke()
      g.globalAlpha = s <= at ? 1 : .75
      if (f.events.length <= 24) aside(short(label), px[k], px[k + 1], 10, 11, {})
    }
    g.globalAlpha = 1
    for (const [t, x, y] of places) aside(t, x, y, 7, y < 30 ? 9 : -9, { px: 10 })
    if (near && open(near[0])) { const k = 2 * (near[0] * S + near[1]); g.beginPath(); g.arc(px[k], px[k + 1], 6, 0, 7); g.lineWidth = 2; g.strokeStyle = ink('--mark'); g.stroke() }
    if (!order.length) write(g, 'All groups are hidden; press one above to show it.', w / 2, h / 2, { align: 'center', px: 13 })
    below()
  }
  // ---- curves over the steps ----
  const rows = () => { // lines of the chosen curve: [numbers, path or −1]
    const name = get('curve'), i = f.curves.findIndex(([n]) => n === name)
    if (i >= 0) { let from = 0; for (let k = 0; k < i; k++) from += f.curves[k][1] * S; return Array.from({ length: f.curves[i][1] }, (_, k) => [curves.subarray(from + k * S, from + (k + 1) * S), f.curves[i][1] > 1 || P === 1 ? k : -1]) }
    const d = Math.max(0, f.axes.indexOf(name))
    return f.names.map((_, p) => [Float32Array.from({ length: S }, (_, s) => xyz[(p * S + s) * D + d]), p])
  }
  let lines = [], edge = { l: 46, r: 16 }
  const cx = s => edge.l + u[s] * (size[2] - edge.l - edge.r)
  const below = () => {
    const w = size[2] = chart.parentElement.clientWidth, h = 104
    const g = fit(chart, w, h), me = focus(), c = stretch(), on = lines.filter(([, p]) => p < 0 || open(p))
    let lo = Infinity, hi = -Infinity
    for (const [v] of on) for (const x of v) if (x === x) { lo = Math.min(lo, x); hi = Math.max(hi, x) }
    if (!(lo <= hi)) [lo, hi] = [0, 1]
    if (lo === hi) { lo -= .5; hi += .5 }
    const y = v => h - 20 - (v - lo) / (hi - lo) * (h - 28)
    g.lineWidth = 1; g.strokeStyle = ink('--line')
    for (const v of nice(lo, hi, 3)) { line(g, [edge.l, y(v)], [w - edge.r, y(v)]); write(g, show(v, 4), edge.l - 6, y(v), { align: 'right', px: 10 }) }
    for (const [t, name] of ticks(w < 700 ? 4 : 8)) { const x = edge.l + t * (w - edge.l - edge.r); write(g, name, x, h - 8, { align: t > .98 ? 'right' : t < .02 ? 'left' : 'center', px: 10 }) }
    if (c) { g.fillStyle = ink('--heat'); g.globalAlpha = .18; g.fillRect(cx(c[1]) - 1, 6, Math.max(3, cx(c[2]) - cx(c[1]) + 2), h - 26); g.globalAlpha = 1 }
    g.lineJoin = 'round'
    for (const [v, p] of on.sort((a, b) => (a[1] === me) - (b[1] === me))) {
      g.beginPath(); let up = true
      for (let s = 0; s < S; s++) if (v[s] === v[s]) { if (up) g.moveTo(cx(s), y(v[s])); else g.lineTo(cx(s), y(v[s])); up = false } else up = true
      g.strokeStyle = ink(p < 0 ? '--ink1' : inks[of[p] % 4]); g.lineWidth = p < 0 || p === me ? 1.8 : 1; g.globalAlpha = p < 0 || p === me ? 1 : .35; g.stroke()
    }
    g.globalAlpha = 1; g.strokeStyle = ink('--ink'); g.lineWidth = 1; line(g, [cx(at), 4], [cx(at), h - 18])
    const mine = lines.find(([, p]) => p === me) ?? lines[0]
    if (mine && mine[0][at] === mine[0][at]) { g.beginPath(); g.arc(cx(at), y(mine[0][at]), 3.5, 0, 7); g.fillStyle = ink('--ink'); g.fill() }
    value.textContent = mine ? `${mine[1] < 0 ? '' : short(f.names[mine[1]]) + ', '}${words(at)}: ${show(mine[0][at], 4)}` : ''
  }
  // ---- what the model makes ----
  const cache = new Map()
  let asked = null, shown = ''
  const needed = () => {
    const c = drag?.to === undefined ? stretch() : null, out = [[focus(), at]]
    if (c) { const n = Math.min(6, c[2] - c[1] + 1); for (let i = 0; i < n; i++) out.push([c[0], Math.round(c[1] + (n > 1 ? i / (n - 1) : 0) * (c[2] - c[1]))]) }
    return out
  }
  const pump = () => {
    if (!f.made || asked) return
    const next = needed().find(k => !cache.has(k.join()))
    if (!next) return
    asked = next.join(); model.send({ want: next })
  }
  const came = (m, buffers) => {
    if (!m?.made) return
    cache.set(m.made.join(), { ...m, buffer: buffers?.[0] }); asked = null
    if (cache.size > 600) { const keep = new Set(needed().map(String)); for (const k of cache.keys()) if (cache.size > 400 && !keep.has(k)) cache.delete(k) }
    outputs(); pump()
  }
  const label = (p, s, m) => `${visible(f.names[p])}, ${words(m?.at ?? s)}`
  const outputs = () => {
    const [first, ...rest] = needed(), m = cache.get(first.join())
    where.textContent = `${m?.at !== undefined && m.at !== first[1] ? `Kept nearest, at ${words(m.at)}` : `Made at ${words(first[1])}`}`
    if (!f.made) { where.textContent = `At ${words(first[1])}`; if (shown !== 'none') { made.replaceChildren(); add(made, 'div', 'snb-c', 'No outputs are attached. Give payload to plot to see what the model makes at each step.'); shown = 'none' } }
    else if (m && shown !== first.join()) { thing(made, m, label(...first, m)); shown = first.join() }
    made.classList.toggle('late', f.made && !m)
    const c = stretch()
    part.hidden = !c; if (!c) { strip.replaceChildren(); delete strip.dataset.of; return }
    span.textContent = `Chosen: ${visible(f.names[c[0]])}, ${words(c[1])} to ${show(f.steps[c[2]], 7)} · ${c[2] - c[1] + 1} checkpoints`
    const got = rest.map(k => cache.has(k.join()) ? 1 : 0).join(''), name = rest.join(';') + got
    if (strip.dataset.of === name || drag?.to !== undefined) return
    strip.dataset.of = name
    strip.replaceChildren(...(f.made ? rest : []).map(k => {
      const b = add(null, 'button'), box = add(b, 'div'), m = cache.get(k.join())
      b.type = 'button'; b.setAttribute('aria-label', `go to ${words(k[1])}`); b.addEventListener('click', () => { choose_path(k[0]); move(k[1]) })
      if (m) thing(box, m, label(...k, m))
      add(b, 'small', '', m?.at !== undefined && m.at !== k[1] ? `from ${show(f.steps[m.at], 7)}` : show(f.steps[k[1]], 7))
      return b
    }))
  }
  // ---- steps ----
  let wait = 0, due = 0
  const send = () => { clearTimeout(wait); wait = 0; model.set('step', f.steps[at]); model.save_changes() } // set only when it is sent, or the kernel's echo of an older step would call it back
  const later = () => { if (!due) due = requestAnimationFrame(() => { due = 0; paint() }) }
  const tell = () => {
    const me = focus()
    slider.value = u[at]; slider.setAttribute('aria-valuetext', words(at)); step.textContent = `${words(at)} of ${show(f.steps[S - 1], 7)}`
    ;[...numbers.children].forEach((e, d) => e.lastChild.textContent = show(xyz[(me * S + at) * D + d], 4))
    outputs(); pump()
  }
  const move = (s, soon = false) => {
    s = Math.max(0, Math.min(S - 1, s))
    if (s !== at) { at = s; later(); tell() }
    if (!soon) send(); else if (!wait) wait = setTimeout(send, 150)
  }
  const stop = () => { cancelAnimationFrame(playing); playing = 0; play.textContent = '▶'; play.setAttribute('aria-label', 'play (space)'); play.title = 'play (space)'; send() }
  const start = () => {
    if (S < 2) return
    if (at === S - 1) move(0, true)
    play.textContent = '❚❚'; play.setAttribute('aria-label', 'pause (space)'); play.title = 'pause (space)'
    const each = Math.max(50, Math.min(400, 8000 / S)), from = at, began = performance.now()
    const tick = now => { const s = from + Math.floor(Math.max(0, now - began) / each); move(s, true); if (at >= S - 1) stop(); else playing = requestAnimationFrame(tick) }
    playing = requestAnimationFrame(tick)
  }
  const choose_path = p => { if (f.names[p] !== get('path')) put(model, { path: f.names[p] }) }
  const choose = c => put(model, c.length ? { path: f.names[c[0]], chosen: [f.names[c[0]], f.steps[Math.min(c[1], c[2])], f.steps[Math.max(c[1], c[2])]] } : { chosen: [] })
  const hold = end => { // a key puts one end of the stretch here
    const c = stretch(), me = focus(), same = c?.[0] === me
    choose(end ? [me, same ? Math.min(c[1], at) : 0, at] : [me, at, same ? Math.max(c[2], at) : S - 1])
  }
  const flip = g => {
    const h = get('hidden'), now = h.includes(g) ? h.filter(x => x !== g) : [...h, g]
    const p = now.includes(f.groups[focus()]) ? f.groups.findIndex(x => !now.includes(x)) : -1
    put(model, p < 0 ? { hidden: now } : { hidden: now, path: f.names[p] })
  }

  // ---- pointer ----
  const point = (e, c) => { const b = c.getBoundingClientRect(); return [e.clientX - b.x, e.clientY - b.y] }
  const nearest = ([x, y], within, only = -1, from = 0, to = S - 1) => {
    let best = within ** 2, got = null
    for (let p = 0; p < P; p++) { if (only >= 0 ? p !== only : !open(p)) continue; const mine = p === focus() ? .6 : 1; for (let s = from; s <= to; s++) { const k = 2 * (p * S + s), d = ((px[k] - x) ** 2 + (px[k + 1] - y) ** 2) * mine; if (d < best) { best = d; got = [p, s] } } }
    return got
  }
  const follow = e => { // along its own path, where it crosses itself too
    const q = point(e, plane), reach = Math.max(8, S >> 3), last = drag.to ?? drag.s
    return (nearest(q, 24, drag.p, Math.max(0, last - reach), Math.min(S - 1, last + reach)) ?? nearest(q, 1e4, drag.p))?.[1] ?? last
  }
  const say = () => {
    if (!near) { read.textContent = get('dims').length > 2 ? 'Drag to turn; drag along a path to choose a stretch.' : 'Drag along a path to choose a stretch; click to go there.'; return }
    const [p, s] = near, events = f.events.filter(v => v[0] === p && v[1] === s).map(v => '★ ' + visible(v[2])), v = signal[p * S + s]
    read.textContent = [`${visible(f.names[p])}${f.groups[p] === f.names[p] ? '' : ` (${visible(f.groups[p])})`}, ${words(s)}`, get('dims').filter(d => d >= 0).map(d => `${visible(f.axes[d])} ${show(xyz[(p * S + s) * D + d], 3)}`).join(', '), ...(v === v && signal.length ? [`${visible(f.signal)} ${show(v, 3)}`] : []), ...events].join(' · ')
  }
  plane.addEventListener('pointerdown', e => {
    if (e.button) return
    const hit = nearest(point(e, plane), 10)
    drag = hit ? { p: hit[0], s: hit[1], x: e.clientX, y: e.clientY } : { x: e.clientX, y: e.clientY, turn: [...turn] }
    plane.setPointerCapture(e.pointerId)
  })
  plane.addEventListener('pointermove', e => {
    if (drag?.turn) { if (get('dims').length > 2) { turn = [drag.turn[0] + (e.clientX - drag.x) / 140, Math.max(-1.5, Math.min(1.5, drag.turn[1] + (e.clientY - drag.y) / 140))]; project(); later() } return }
    if (drag) { if (drag.to !== undefined || Math.hypot(e.clientX - drag.x, e.clientY - drag.y) > 4) { drag.to = follow(e); later(); outputs() } return }
    const n = nearest(point(e, plane), 12)
    if (String(n) === String(near)) return
    near = n; plane.style.cursor = n ? 'pointer' : get('dims').length > 2 ? 'grab' : 'default'; say(); later()
  })
  const done = keep => e => {
    const was = drag
    drag = null
    if (!was || was.turn) return
    if (keep && was.to !== undefined && was.to !== was.s) choose([was.p, was.s, was.to])
    else if (keep) { choose_path(was.p); move(was.s) }
    later(); outputs()
  }
  plane.addEventListener('pointerup', done(true)); plane.addEventListener('pointercancel', done(false))
  plane.addEventListener('pointerleave', () => { if (near && !drag) { near = null; say(); later() } })
  const along = e => { const x = point(e, chart)[0]; let best = 0; for (let s = 1; s < S; s++) if (Math.abs(cx(s) - x) < Math.abs(cx(best) - x)) best = s; return best }
  chart.addEventListener('pointerdown', e => { if (e.button) return; drag = { p: focus(), s: along(e), x: e.clientX, y: e.clientY, chart: true }; chart.setPointerCapture(e.pointerId) })
  chart.addEventListener('pointermove', e => { if (drag?.chart && (drag.to !== undefined || Math.abs(e.clientX - drag.x) > 4)) { drag.to = along(e); later(); outputs() } })
  chart.addEventListener('pointerup', done(true)); chart.addEventListener('pointercancel', done(false))
  slider.addEventListener('input', () => { if (playing) stop(); let best = 0; for (let s = 1; s < S; s++) if (Math.abs(u[s] - slider.value) < Math.abs(u[best] - slider.value)) best = s; move(best, true) })
  slider.addEventListener('change', () => { slider.value = u[at]; send() })
  path.addEventListener('change', () => choose_path(path.selectedIndex))
  curve.addEventListener('change', () => put(model, { curve: curve.value }))
  const keys = {
    ArrowRight: e => move(at + 1), ArrowLeft: e => move(at - 1), PageUp: e => move(at + 10), PageDown: e => move(at - 10), Home: e => move(0), End: e => move(S - 1),
    ' ': () => playing ? stop() : start(), '[': () => hold(0), ']': () => hold(1), Escape: () => choose([]),
  }
  const beside = by => { const on = f.names.map((_, p) => p).filter(open), i = on.indexOf(focus()); if (on.length) choose_path(on[(Math.max(0, i) + by + on.length) % on.length]) }
  root.addEventListener('keydown', e => {
    if (e.altKey || e.ctrlKey || e.metaKey || e.target.closest('select') || (e.key === ' ' && e.target.closest('button'))) return
    if (e.shiftKey && e.target === plane && e.key.startsWith('Arrow')) { const k = e.key.slice(5); turn = [turn[0] + .1 * ((k === 'Right') - (k === 'Left')), Math.max(-1.5, Math.min(1.5, turn[1] + .1 * ((k === 'Down') - (k === 'Up'))))]; project(); later() }
    else if (e.key === 'ArrowUp' || e.key === 'ArrowDown') beside(e.key === 'ArrowUp' ? -1 : 1)
    else if (keys[e.key]) { if (playing && e.key !== ' ') stop(); keys[e.key](e) }
    else return
    e.preventDefault(); e.stopPropagation()
  })

  // ---- what is fixed until other paths come ----
  const select = (parent, names, act, label) => { const s = add(parent, 'select'); s.setAttribute('aria-label', label); for (const [v, n] of names) add(s, 'option', '', short(n)).value = v; s.addEventListener('change', () => act(Number(s.value))); return s }
  const build = () => {
    title.textContent = visible(f.title); caption.textContent = visible(f.caption); caption.hidden = !f.caption
    hues.replaceChildren(); dims.replaceChildren()
    const can = f.colours.map(c => c === 'signal' ? visible(f.signal) : c === 'step' ? visible(f.step_label) : c), back = Object.fromEntries(can.map((n, i) => [n, f.colours[i]]))
    if (can.length > 1) { add(hues, 'span', 'snb-c', 'Colour'); const press = choice(hues, 'colour of the paths', can, c => put(model, { colour: back[c] })); paints = () => press(can[f.colours.indexOf(by())]) } else paints = () => {}
    if (D > 2) { const press = choice(dims, 'dimensions shown', ['2-D', '3-D'], n => put(model, { dims: n === '2-D' ? get('dims').slice(0, 2) : [...get('dims'), [0, 1, 2].find(d => !get('dims').includes(d))].slice(0, 3) })); three = () => press(get('dims').length > 2 ? '3-D' : '2-D') } else three = () => {}
    if (D > 2) for (let k = 0; k < 3; k++) select(dims, f.axes.map((a, i) => [i, a]), v => { const d = [...get('dims')], j = d.indexOf(v); if (j >= 0) d[j] = d[k]; d[k] = v; put(model, { dims: d }) }, `dimension ${k + 1}`)
    toggles.replaceChildren(...groups.map((g, i) => { const b = button(null, '', `group ${visible(g)}`, () => flip(g)); draw(b, 'svg', { width: 18, height: 8, 'aria-hidden': true }); add(b, 'span', '', short(g)); return b }))
    toggles.hidden = groups.length < 2
    path.replaceChildren(...f.names.map(n => add(null, 'option', '', short(n, 40))))
    curve.replaceChildren(...[...f.curves.map(c => c[0]), ...f.axes].map(n => { const o = add(null, 'option', '', short(n, 50)); o.value = n; return o }))
    numbers.replaceChildren(...f.axes.map(a => { const r = add(null, 'div'); add(r, 'span', '', short(a)); add(r, 'em'); return r }))
    hint.textContent = '← → step · space plays · ↑ ↓ path · [ ] ends of a stretch · Esc leaves it' + (D > 2 ? ' · Shift and arrows turn' : '')
    cache.clear(); asked = null; shown = ''
  }
  const looks = () => {
    const c = by(), r = spread(), group = c === 'group'
    legend.hidden = group
    if (!group) { const all = tints(); shade.style.background = `linear-gradient(90deg,${all.filter((_, i) => i % 4 === 0 || i === levels - 1).join()})`; low.textContent = c === 'step' ? show(f.steps[0], 7) : show(r[0], 3); high.textContent = c === 'step' ? show(f.steps[S - 1], 7) : show(r[1], 3); legend.setAttribute('aria-label', `colour by ${c === 'step' ? f.step_label : f.signal}, from ${low.textContent} to ${high.textContent}`) }
    ;[...toggles.children].forEach((b, i) => { const s = b.firstChild; s.replaceChildren(); draw(s, 'line', { x1: 0, x2: 18, y1: 4, y2: 4, 'stroke-width': 2, 'stroke-dasharray': dashed(i).join(' ') || 'none', style: `stroke:var(${group ? inks[i % 4] : '--ink1'})` }); b.setAttribute('aria-pressed', !get('hidden').includes(groups[i])) })
    paints(); three()
    ;[...dims.querySelectorAll('select')].forEach((s, k) => { s.value = get('dims')[k]; s.hidden = get('dims').length <= k })
    path.selectedIndex = focus(); curve.value = get('curve')
    plane.setAttribute('aria-label', `${visible(f.title)}: ${P} paths over ${S} steps, ${get('dims').map(d => visible(axis(d))).join(', ')}`)
    chart.setAttribute('aria-label', `${visible(get('curve'))} over ${f.step_label}; drag to choose a stretch, click to go to a step`)
    lines = rows(); say()
  }
  const fresh = () => { px = null; looks(); paint() }
  const all = () => { if (playing) stop(); load(); at = index.get(get('step')) ?? S - 1; near = drag = null; build(); fresh(); tell() }
  const stepped = () => { const s = index.get(get('step')); if (s !== undefined && s !== at) { if (playing) stop(); at = s; later(); tell() } }
  const changed = () => { looks(); project(); later(); tell() }
  const watch = new ResizeObserver(() => { if (left.clientWidth !== size[0]) paint(); else if (over.clientWidth !== size[2]) below() }), untheme = on_theme(root, fresh)
  all()
  watch.observe(left); watch.observe(over)
  const off = listen(model, { 'change:version': all, 'change:step': stepped, 'change:path': changed, 'change:chosen': () => { later(); outputs(); pump() }, 'change:colour': changed, 'change:hidden': changed, 'change:dims': changed, 'change:curve': changed, 'msg:custom': came })
  return () => { clearTimeout(wait); cancelAnimationFrame(playing); cancelAnimationFrame(due); watch.disconnect(); untheme(); off() }
}
// The kernel of a page that has none: state and outputs lie in the page
function static_trajectory(root) {
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent), on = {}, changed = new Set()
  const undo = s => new DataView(from_base64(s).buffer)
  for (const [k, v] of Object.entries(data.state)) if (v?.b64 !== undefined) data.state[k] = undo(v.b64)
  const fire = (k, ...a) => { for (const f of on[k] ?? []) f(...a) }
  const model = {
    get: k => data.state[k], on: (k, f) => { (on[k] ??= []).push(f) }, off: () => {},
    set: (k, v) => { if (data.state[k] !== v) { data.state[k] = v; changed.add(k) } },
    save_changes: () => { const now = [...changed]; changed.clear(); for (const k of now) fire('change:' + k) },
    send: ({ want: [p, s] }) => {
      const held = data.held[p] ?? {}, at = Object.keys(held).map(Number).reduce((b, k) => b === null || Math.abs(k - s) < Math.abs(b - s) ? k : b, null)
      const m = at === null ? { kind: 'none', shape: [] } : { kind: held[at][0], shape: held[at][1], at }
      queueMicrotask(() => fire('msg:custom', { made: [p, s], ...m }, [undo(held[at]?.[2] ?? '')]))
    },
  }
  root.querySelector('.snb-tp').remove()
  render({ model, el: root })
}
export default { render }
