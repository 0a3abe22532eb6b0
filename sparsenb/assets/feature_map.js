// Features as points in a plane: shade by density, drag to choose, click to go there. Two canvases: points, and what is marked upon them.
function render({ model, el }) {
  const root = add(el, 'div', 'snb snb-map')
  const head = add(root, 'div', 'snb-h'), title = head.appendChild(document.createTextNode('')), by = choice(head, 'how features are placed', model.get('offered').map(w => w.toUpperCase()), w => put(model, { by: w.toLowerCase() }))
  const seg = head.querySelector('.snb-seg'), wrong = add(root, 'div', 'snb-c snb-wrong')
  wrong.setAttribute('role', 'alert')
  const box = add(root, 'div', 'snb-plane'), below = add(box, 'canvas'), above = add(box, 'canvas')
  above.tabIndex = 0; above.setAttribute('role', 'img')
  const tip = add(root, 'div', 'snb-read'), legend = add(root, 'div', 'snb-l')
  const low = add(legend, 'span'), _ = add(legend, 'i'), high = add(legend, 'span'), what = add(legend, 'span', '', 'density')
  legend.setAttribute('role', 'img')
  let xy = new Float32Array(), shade = new Uint8Array(), lit = new Uint8Array(), px = new Float32Array(), size = 0, drag = null, near = -1, ends = [0, 1, 0, 1]

  const load = () => {
    xy = new Float32Array(bytes(model.get('places'))); shade = new Uint8Array(bytes(model.get('shade')))
    ends = [Infinity, -Infinity, Infinity, -Infinity]
    for (let i = 0; i < xy.length; i += 2) { ends[0] = Math.min(ends[0], xy[i]); ends[1] = Math.max(ends[1], xy[i]); ends[2] = Math.min(ends[2], xy[i + 1]); ends[3] = Math.max(ends[3], xy[i + 1]) }
  }
  const put_x = x => 8 + (x - ends[0]) / (ends[1] - ends[0] || 1) * (size - 16), put_y = y => size - 8 - (y - ends[2]) / (ends[3] - ends[2] || 1) * (size - 16)
  const get_x = p => ends[0] + (p - 8) / (size - 16) * (ends[1] - ends[0]), get_y = p => ends[2] + (size - 8 - p) / (size - 16) * (ends[3] - ends[2])
  const colour = name => getComputedStyle(root).getPropertyValue(name).trim()
  const paint = () => {
    size = Math.max(60, Math.min(box.clientWidth, 420))
    const d = devicePixelRatio || 1
    for (const c of [below, above]) { c.width = c.height = Math.round(size * d); c.style.width = c.style.height = size + 'px'; c.getContext('2d').setTransform(d, 0, 0, d, 0, 0) }
    box.style.height = size + 'px'
    const g = below.getContext('2d'), n = xy.length / 2, r = n > 20000 ? 1.6 : n > 3000 ? 2.2 : 3
    lit = new Uint8Array(bytes(model.get('lit')))
    px = new Float32Array(xy.length)
    for (let i = 0; i < n; i++) { px[2 * i] = put_x(xy[2 * i]); px[2 * i + 1] = put_y(xy[2 * i + 1]) }
    // few colours, so that 64 thousand points cost few changes of state
    const some = lit.length === n, levels = 8
    for (const on of some ? [0, 1] : [1]) for (let l = 0; l < levels; l++) {
      g.fillStyle = on && some ? colour('--heat') : colour('--ink2')
      g.globalAlpha = (some && !on ? .35 : 1) * (.18 + .72 * (l + 1) / levels)
      for (let i = 0; i < n; i++) if (shade[i] >> 5 === l && shade[i] && (!some || lit[i] === on)) g.fillRect(px[2 * i] - r / 2, px[2 * i + 1] - r / 2, r, r)
    }
    over()
  }
  const dot = (g, i, r, fill, ring) => { g.beginPath(); g.arc(px[2 * i], px[2 * i + 1], r, 0, 7); g.fillStyle = fill; g.fill(); g.lineWidth = 1.5; g.strokeStyle = ring; g.stroke() }
  const over = () => {
    const g = above.getContext('2d'), now = model.get('feature'), b = drag?.to ? [drag.x, drag.y, ...drag.to] : null, kept = model.get('brush')
    g.clearRect(0, 0, size, size)
    const r = b ?? (kept.length === 4 ? [put_x(kept[0]), put_y(kept[1]), put_x(kept[2]), put_y(kept[3])] : null)
    if (r) { g.strokeStyle = colour('--heat'); g.setLineDash([3, 3]); g.strokeRect(Math.min(r[0], r[2]), Math.min(r[1], r[3]), Math.abs(r[2] - r[0]), Math.abs(r[3] - r[1])); g.setLineDash([]) }
    if (near >= 0 && near !== now) dot(g, near, 4, colour('--bg'), colour('--mark'))
    if (now >= 0 && now < px.length / 2) dot(g, now, 5, colour('--heat'), colour('--bg'))
  }
  const words = () => {
    title.data = model.get('title'); low.textContent = model.get('low'); high.textContent = model.get('high')
    above.setAttribute('aria-label', `${model.get('title')}, ${(xy.length / 2).toLocaleString('en-US')} features; drag to choose, click to go to one, Escape shows all`)
    legend.setAttribute('aria-label', `shade from density ${low.textContent} to ${high.textContent}`)
    tip.textContent = visible(model.get('tip')); by(model.get('by').toUpperCase()); seg.hidden = model.get('offered').length < 2
    wrong.textContent = model.get('error'); wrong.hidden = !wrong.textContent
  }
  const at = e => { const b = above.getBoundingClientRect(); return [(e.clientX - b.x) * size / b.width, (e.clientY - b.y) * size / b.height] }
  const nearest = ([x, y]) => {
    let best = 64, i = -1
    for (let j = 0; j < px.length; j += 2) { if (!shade[j >> 1]) continue; const d = (px[j] - x) ** 2 + (px[j + 1] - y) ** 2; if (d < best) { best = d; i = j >> 1 } }
    return i
  }
  let wait = 0
  above.addEventListener('pointerdown', e => { if (e.button) return; const [x, y] = at(e); drag = { x, y }; above.setPointerCapture(e.pointerId) })
  above.addEventListener('pointermove', e => {
    const p = at(e)
    if (drag) { if (drag.to || Math.hypot(p[0] - drag.x, p[1] - drag.y) > 3) drag.to = p.map(v => Math.max(0, Math.min(size, v))); over(); return }
    const i = nearest(p)
    if (i === near) return
    near = i; above.style.cursor = i < 0 ? 'crosshair' : 'pointer'; over()
    clearTimeout(wait); wait = setTimeout(() => put(model, { hovered: near }), 60)
  })
  above.addEventListener('pointerleave', () => { near = -1; over(); clearTimeout(wait); wait = setTimeout(() => put(model, { hovered: -1 }), 60) })
  above.addEventListener('pointercancel', () => { drag = null; over() })
  above.addEventListener('pointerup', e => {
    if (!drag) return
    const was = drag, i = nearest(at(e))
    drag = null
    if (was.to) { const x = [was.x, was.to[0]].map(get_x).sort((a, b) => a - b), y = [was.y, was.to[1]].map(get_y).sort((a, b) => a - b); put(model, { brush: [x[0], y[0], x[1], y[1]] }) }
    else if (i >= 0) model.send({ choose: i })
    else if (model.get('brush').length) put(model, { brush: [] })
    over()
  })
  above.addEventListener('keydown', e => { if (e.key === 'Escape' && model.get('brush').length) { put(model, { brush: [] }); e.preventDefault(); e.stopPropagation() } })

  load(); words()
  const watch = new ResizeObserver(paint), untheme = on_theme(root, paint)
  watch.observe(box)
  const off = listen(model, { 'change:places': () => { load(); paint() }, 'change:lit': paint, 'change:feature change:brush': over, 'change:title change:tip change:low change:high change:by change:error change:offered': words })
  return () => { clearTimeout(wait); watch.disconnect(); untheme(); off() }
}
export default { render }
