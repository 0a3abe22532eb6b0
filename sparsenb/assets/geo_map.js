// Places on a grid of degrees, chosen by box, lasso, click, country or arrows. The picture is the view's own; what is chosen is marked upon it.
function render({ model, el }) {
  const get = k => model.get(k), f = get('facts'), n = f.names.length, at = new Float32Array(bytes(get('values_')))
  let root = el.querySelector('.snb-gm'), picture = root?.querySelector('svg')
  if (!root) {
    root = add(el, 'div', 'snb snb-panel snb-gm')
    if (f.title) add(root, 'div', 'snb-h', visible(f.title))
    const box = add(root, 'div', 'snb-gm-m')
    picture = f.svg ? box.appendChild(document.importNode(new DOMParser().parseFromString(f.svg, 'image/svg+xml').documentElement, true)) : null
    if (!picture) add(box, 'div', 'snb-c', 'No places to draw yet.')
    if (f.caption) add(root, 'div', 'snb-c', visible(f.caption))
  }
  if (!picture) return () => {}
  const size = picture.viewBox.baseVal, marks = [...picture.querySelectorAll('g[data-i]')], lines = [...picture.querySelectorAll('line[data-i]')]
  picture.tabIndex = 0; picture.style.touchAction = 'none'
  const bar = add(null, 'div', 'snb-b snb-gm-b')
  root.insertBefore(bar, picture.parentElement)
  const press = choice(bar, 'what the pointer draws', ['box', 'lasso'], s => put(model, { lasso: s === 'lasso' }))
  const regions = [...new Set(f.regions)].filter(r => r).sort((a, b) => a.localeCompare(b)), pick = add(bar, 'select')
  pick.setAttribute('aria-label', 'choose the places of a country'); pick.hidden = !regions.length
  add(pick, 'option', '', `${regions.length} regions`).value = -1
  regions.forEach((r, i) => { add(pick, 'option', '', visible(r)).value = i })
  add(bar, 'span', 'sp')
  const right = add(bar, 'span', 'snb-gm-s'), said = add(right, 'span', 'snb-c'), none = button(right, '×', 'choose none (Escape)', () => choose([]))
  said.setAttribute('aria-live', 'polite')
  const list = add(root, 'div', 'snb-gm-t'), table = add(list, 'table', 'snb-t')
  const frame = draw(picture, 'path', { class: 'snb-gm-f', fill: 'none' })

  let seen = null // a box has no place before it is on the page
  const xy = () => seen ??= new Map(marks.map(g => { const b = g.getBBox(); return [Number(g.dataset.i), [b.x + b.width / 2, b.y + b.height / 2]] }))
  const rows = () => get('rows')
  const choose = (now, more = false) => put(model, { rows: more ? [...new Set([...rows(), ...now])] : [...now] })
  const degrees = (v, pos, neg) => `${Math.abs(v).toFixed(1)}° ${v >= 0 ? pos : neg}`
  const place = (a, o) => Number.isFinite(a) && Number.isFinite(o) ? `${degrees(a, 'N', 'S')}, ${degrees(o, 'E', 'W')}` : '–'
  const told = () => {
    const now = rows(), on = new Set(now), some = now.length > 0, values = now.map(i => at[5 * i + 2]).filter(Number.isFinite), to = at.some((v, k) => k % 5 === 3 && Number.isFinite(v)), valued = at.some((v, k) => k % 5 === 2 && Number.isFinite(v))
    for (const g of [...marks, ...lines]) { g.classList.toggle('off', some && !on.has(Number(g.dataset.i))); g.classList.toggle('on', on.has(Number(g.dataset.i))) }
    const mean = values.reduce((a, v) => a + v, 0) / values.length
    said.textContent = some ? `${now.length} of ${n} places${values.length > 1 ? ` · mean ${visible(f.label)} ${show(mean, 3)}` : ''}` : `${n} places; drag over some to choose them`
    none.hidden = list.hidden = !some
    press(get('lasso') ? 'lasso' : 'box')
    const same = regions.findIndex(r => some && now.every(i => f.regions[i] === r) && f.regions.filter(x => x === r).length === now.length)
    pick.value = same
    const line = (cells, tag) => { const r = add(null, 'tr'); for (const [c, cls] of cells) add(r, tag, cls, c); return r }
    const heads = [['place', ''], ...regions.length ? [['region', '']] : [], ...f.groups.length ? [['group', '']] : [], [to ? 'true' : 'where', 'r'], ...to ? [['predicted', 'r']] : [], ...valued ? [[f.label, 'r']] : []]
    const order = valued ? [...now].sort((i, j) => (at[5 * j + 2] || -Infinity) - (at[5 * i + 2] || -Infinity)) : now
    table.setAttribute('aria-label', 'chosen places')
    table.replaceChildren(line(heads, 'th'), ...order.slice(0, 500).map(i => line([[visible(f.names[i]), ''], ...regions.length ? [[visible(f.regions[i]), '']] : [], ...f.groups.length ? [[visible(f.groups[i]) || '–', '']] : [], [place(at[5 * i], at[5 * i + 1]), 'r'], ...to ? [[place(at[5 * i + 3], at[5 * i + 4]), 'r']] : [], ...valued ? [[show(at[5 * i + 2], 4), 'r']] : []], 'td')))
  }

  // ---- pointer ----
  let path = null
  const point = e => { const b = picture.getBoundingClientRect(); return [(e.clientX - b.x) / b.width * size.width, (e.clientY - b.y) / b.height * size.height] }
  const corners = () => { if (get('lasso')) return path; const [a, b] = [path[0], path[path.length - 1]]; return [a, [b[0], a[1]], b, [a[0], b[1]]] }
  const inside = ([x, y], p) => p.reduce((odd, [x1, y1], k) => { const [x2, y2] = p[(k + 1) % p.length]; return (y1 > y) !== (y2 > y) && x < (x2 - x1) * (y - y1) / (y2 - y1) + x1 ? !odd : odd }, false)
  const nearest = ([x, y], within) => { let best = within ** 2, got = -1; for (const [i, p] of xy()) { const d = (p[0] - x) ** 2 + (p[1] - y) ** 2; if (d < best) { best = d; got = i } } return got }
  const far = p => Math.hypot(p[0] - path[0][0], p[1] - path[0][1]) > 5
  picture.addEventListener('pointerdown', e => { if (!e.button) { path = [point(e)]; picture.setPointerCapture(e.pointerId) } })
  picture.addEventListener('pointermove', e => { if (!path) return; path.push(point(e)); if (path.some(far)) frame.setAttribute('d', 'M' + corners().map(p => p.map(v => v.toFixed(1)).join()).join('L') + 'Z') })
  const done = keep => e => {
    if (!path) return
    if (keep && path.some(far)) { const p = corners(); choose([...xy()].filter(([, q]) => inside(q, p)).map(([i]) => i), e.shiftKey) }
    else if (keep) { const i = nearest(path[0], 9); choose(i < 0 ? [] : e.shiftKey && rows().includes(i) ? rows().filter(j => j !== i) : [i], i >= 0 && e.shiftKey && !rows().includes(i)) }
    path = null; frame.removeAttribute('d')
  }
  picture.addEventListener('pointerup', done(true)); picture.addEventListener('pointercancel', done(false))
  // ---- keys: the next place in a direction ----
  const next = (dx, dy) => {
    const i = rows()[rows().length - 1], [x, y] = xy().get(i) ?? [size.width / 2, size.height / 2]
    let best = Infinity, got = -1
    for (const [j, p] of xy()) { const along = (p[0] - x) * dx + (p[1] - y) * dy, aside = Math.abs((p[0] - x) * dy) + Math.abs((p[1] - y) * dx); if (j !== i && along > 0 && along >= aside && along + aside < best) { best = along + aside; got = j } }
    return got
  }
  const ways = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
  root.addEventListener('keydown', e => {
    if (e.altKey || e.ctrlKey || e.metaKey || e.target.closest('select')) return
    if (e.key === 'Escape') choose([])
    else if (ways[e.key] && e.target === picture) { const i = next(...ways[e.key]); if (i >= 0) choose([i], e.shiftKey) }
    else return
    e.preventDefault(); e.stopPropagation()
  })
  pick.addEventListener('change', () => { const r = regions[pick.value]; choose(r === undefined ? [] : f.regions.flatMap((x, i) => x === r ? [i] : [])) })
  told()
  return listen(model, { 'change:rows change:lasso': told })
}
// The same on a page without a kernel
function static_places(section) {
  const state = JSON.parse(section.querySelector('script[type="application/json"]').textContent)
  state.values_ = from_base64(state.values_)
  render({ model: page_model(state), el: section })
}
export default { render }
