// A list of features: search, order, narrow, choose. It holds the rows around what is seen and asks for others. Its keys work anywhere in the browser that holds it.
const tall = 25 // pixels of a row

function render({ model, el }) {
  const root = add(el, 'div', 'snb snb-list')
  const title = add(root, 'div', 'snb-h')
  const find = add(root, 'input')
  find.type = 'search'; find.placeholder = 'id, token, text, label'; find.setAttribute('aria-label', 'search features by id, token, text, label or explanation')
  const chips = add(root, 'div', 'snb-chips')
  const select = (label, names, key) => {
    const s = add(chips, 'select')
    s.setAttribute('aria-label', label)
    for (const o of names) add(s, 'option', '', o).value = o
    s.addEventListener('change', () => put(model, { [key]: s.value }))
    return s
  }
  const order = select('order of the list', model.get('ways'), 'order'), which = select('which features', model.get('kinds'), 'kind')
  const range = add(root, 'div', 'snb-range'), ends = ['lowest', 'highest'].map((w, i) => {
    if (i) range.append(' to ')
    else range.append('density ')
    const n = add(range, 'input')
    n.type = 'number'; n.min = 0; n.max = 100; n.step = 'any'; n.placeholder = i ? '100' : '0'; n.setAttribute('aria-label', `${w} density in percent of tokens`)
    n.addEventListener('change', () => put(model, { density: ends.some(e => e.value !== '') ? [Number(ends[0].value) / 100, ends[1].value === '' ? 1 : Number(ends[1].value) / 100] : [] }))
    return n
  })
  range.append(' %')
  const free = button(root, 'on the map ×', 'Show features from the whole map again', () => model.send({ free: true }))
  free.className = 'snb-free'
  const list = add(root, 'div', 'snb-rows'), space = add(list, 'div', 'snb-space'), block = add(space, 'div', 'snb-block')
  list.setAttribute('role', 'listbox'); list.tabIndex = 0
  const empty = add(list, 'div', 'snb-c')
  const count = add(root, 'div', 'snb-c'), help = add(root, 'div', 'snb-c snb-help', '← → feature · ↑ ↓ in the list · / search · b bookmark · l label · ? keys. In the examples arrows walk tokens, Enter chooses one; in the histogram arrows move an end.')
  count.setAttribute('aria-live', 'polite'); help.hidden = true; help.setAttribute('role', 'status')
  const uid = 'snb' + model.get('uid')
  let rows = new Map(), asked = -1, at = -1

  const build = () => {
    const start = model.get('start'), total = model.get('total')
    rows = new Map(); asked = -1
    space.style.height = total * tall + 'px'; block.style.top = start * tall + 'px'
    block.replaceChildren(...model.get('rows').map(([id, text, share, starred], i) => {
      const r = add(null, 'div', 'snb-row')
      r.id = uid + '-' + id; r.dataset.id = id; r.setAttribute('role', 'option')
      r.setAttribute('aria-posinset', start + i + 1); r.setAttribute('aria-setsize', total)
      add(r, 'b', '', String(id)); add(r, 'span', '', (starred ? '★ ' : '') + text)
      add(r, 'i').style.width = Math.round(2 + 38 * share) + 'px'
      r.title = id + ' ' + text
      rows.set(id, r)
      return r
    }))
    empty.textContent = total ? '' : model.get('empty'); empty.hidden = !!total
    mark(model.get('feature') !== at); look()
  }
  const mark = (move = true) => {
    const now = model.get('feature')
    for (const [id, r] of rows) r.setAttribute('aria-selected', id === now)
    const r = rows.get(now)
    if (!r) { list.removeAttribute('aria-activedescendant'); return }
    list.setAttribute('aria-activedescendant', r.id); at = now
    if (move) { const y = block.offsetTop + r.offsetTop; list.scrollTop += Math.min(0, y - list.scrollTop - 4) + Math.max(0, y + tall - list.scrollTop - list.clientHeight + 4) }
  }
  const look = () => {
    const n = rows.size, first = Math.floor(list.scrollTop / tall), last = Math.ceil((list.scrollTop + list.clientHeight) / tall), start = model.get('start'), total = model.get('total')
    const middle = (first + Math.min(last, total)) >> 1
    if (!n || last - first > n || (first >= start && Math.min(last, total) <= start + n) || asked === middle) return
    asked = middle; model.send({ look: middle })
  }
  const words = () => {
    title.textContent = model.get('title'); list.setAttribute('aria-label', model.get('title'))
    count.textContent = model.get('count')
    order.value = model.get('order'); which.value = model.get('kind'); free.hidden = !model.get('narrowed')
    if (document.activeElement !== find) find.value = model.get('query')
    const d = model.get('density')
    ends.forEach((e, i) => { if (document.activeElement !== e) e.value = d.length ? Number((100 * d[i]).toPrecision(6)) : '' })
  }
  const step = d => model.send({ step: d })
  let wait = 0
  find.addEventListener('input', () => { clearTimeout(wait); wait = setTimeout(() => put(model, { query: find.value }), 150) })
  find.addEventListener('keydown', e => {
    if (e.key === 'Enter') { clearTimeout(wait); put(model, { query: find.value }); list.focus() }
    else if (e.key === 'Escape') { find.value = ''; clearTimeout(wait); put(model, { query: '' }); list.focus() }
    else { e.stopPropagation(); return }
    e.preventDefault(); e.stopPropagation()
  })
  for (const n of ends) n.addEventListener('keydown', e => e.stopPropagation())
  list.addEventListener('scroll', () => requestAnimationFrame(look))
  list.addEventListener('click', e => { const r = e.target.closest('.snb-row'); if (r) { list.focus({ preventScroll: true }); model.send({ choose: Number(r.dataset.id) }) } })
  list.addEventListener('keydown', e => {
    const d = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[e.key]
    if (!d || e.altKey || e.ctrlKey || e.metaKey) return
    step(d); e.preventDefault(); e.stopPropagation()
  })
  // Keys of the whole browser, before the notebook sees them; where text is typed they are letters
  const keys = e => {
    const home = el.closest('.snb-browser')
    if (!home || !home.contains(e.target) || e.altKey || e.ctrlKey || e.metaKey) return
    if (e.target.closest('input,select,textarea,[contenteditable=true]')) return
    const d = { ArrowLeft: -1, ArrowRight: 1 }[e.key]
    if (d && e.target.closest('[role=grid],[role=slider],[role=tablist],[role=radiogroup],canvas')) return
    if (d) step(d)
    else if (e.key === '/') { find.focus(); find.select() }
    else if (e.key === 'b') model.send({ bookmark: true })
    else if (e.key === 'l' || e.key === 'e') home.querySelector('.snb-fc')?.dispatchEvent(new Event('snb-label'))
    else if (e.key === '?') help.hidden = !help.hidden
    else return
    e.preventDefault(); e.stopPropagation()
  }
  window.addEventListener('keydown', keys, true)
  const watch = new ResizeObserver(() => { mark(); look() })
  watch.observe(list)
  build(); words(); mark()
  const off = listen(model, { 'change:version': build, 'change:feature': () => mark(), 'change:title change:count change:order change:kind change:query change:density change:narrowed': words })
  return () => { clearTimeout(wait); watch.disconnect(); window.removeEventListener('keydown', keys, true); off() }
}
export default { render }
