// A list of features: search, order, choose. Its keys work anywhere in the browser that holds it.
const add = (parent, tag, cls, text) => {
  const e = document.createElement(tag)
  if (cls) e.className = cls
  if (text !== undefined) e.textContent = text
  return parent ? parent.appendChild(e) : e
}

function render({ model, el }) {
  const root = add(el, 'div', 'snb snb-list')
  const title = add(root, 'div', 'snb-h')
  const tools = add(root, 'div', 'snb-find')
  const find = add(tools, 'input')
  find.type = 'search'; find.placeholder = 'id, token or text'; find.setAttribute('aria-label', 'search features by id, token or text')
  const chips = add(tools, 'div', 'snb-chips')
  const order = add(chips, 'select')
  order.setAttribute('aria-label', 'order of the list')
  for (const o of model.get('ways')) add(order, 'option', '', o).value = o
  const dead = add(chips, 'button', '', 'hide dead')
  dead.type = 'button'
  const list = add(root, 'div', 'snb-rows')
  list.setAttribute('role', 'listbox'); list.tabIndex = 0
  const count = add(root, 'div', 'snb-c')
  count.setAttribute('aria-live', 'polite')
  const uid = 'snb' + model.get('uid')
  let rows = new Map()

  const build = () => {
    rows = new Map()
    list.replaceChildren(...model.get('rows').map(([id, text, share, value]) => {
      const r = add(null, 'div', 'snb-row')
      r.id = uid + '-' + id; r.dataset.id = id; r.setAttribute('role', 'option')
      add(r, 'b', '', String(id)); add(r, 'span', '', text)
      if (value) add(r, 'em', '', value)
      else { const bar = add(r, 'i'); bar.style.width = Math.round(2 + 38 * share) + 'px' }
      r.title = id + ' ' + text + (value ? ' ' + value : '')
      rows.set(id, r)
      return r
    }))
    if (!rows.size) add(list, 'div', 'snb-c', model.get('empty'))
    mark()
  }
  const mark = () => {
    const now = model.get('feature')
    for (const [id, r] of rows) r.setAttribute('aria-selected', id === now)
    const r = rows.get(now)
    if (r) { list.setAttribute('aria-activedescendant', r.id); list.scrollTop += Math.min(0, r.offsetTop - list.scrollTop - 4) + Math.max(0, r.offsetTop + r.offsetHeight - list.scrollTop - list.clientHeight + 4) }
    else list.removeAttribute('aria-activedescendant')
  }
  const words = () => {
    title.textContent = model.get('title'); list.setAttribute('aria-label', model.get('title'))
    count.textContent = model.get('count')
    tools.hidden = !model.get('searchable')
    order.value = model.get('order'); dead.setAttribute('aria-pressed', model.get('alive_only'))
    if (document.activeElement !== find) find.value = model.get('query')
  }
  const set = (k, v) => { model.set(k, v); model.save_changes() }
  const step = d => model.send({ step: d })
  let wait = 0
  find.addEventListener('input', () => { clearTimeout(wait); wait = setTimeout(() => set('query', find.value), 150) })
  find.addEventListener('keydown', e => {
    if (e.key === 'Enter') { clearTimeout(wait); set('query', find.value); list.focus() }
    else if (e.key === 'Escape') { find.value = ''; clearTimeout(wait); set('query', ''); list.focus() }
    else { e.stopPropagation(); return }
    e.preventDefault(); e.stopPropagation()
  })
  order.addEventListener('change', () => set('order', order.value))
  dead.addEventListener('click', () => set('alive_only', !model.get('alive_only')))
  list.addEventListener('click', e => { const r = e.target.closest('.snb-row'); if (r) { list.focus(); model.send({ choose: Number(r.dataset.id) }) } })
  // neighbours: the list has no place of its own in the order of features, so arrows walk its rows and Enter chooses
  let at = -1
  list.addEventListener('keydown', e => {
    if (e.altKey || e.ctrlKey || e.metaKey) return
    const d = { ArrowDown: 1, ArrowUp: -1 }[e.key], ids = [...rows.keys()]
    if (model.get('searchable') && d) step(d)
    else if (d && ids.length) {
      at = Math.max(0, Math.min(ids.length - 1, at + d))
      for (const [id, r] of rows) r.classList.toggle('at', id === ids[at])
      list.setAttribute('aria-activedescendant', rows.get(ids[at]).id)
    }
    else if (e.key === 'Enter' && at >= 0 && ids[at] !== undefined) { model.send({ choose: ids[at] }); at = -1 }
    else return
    e.preventDefault(); e.stopPropagation()
  })
  // ← → and / in the whole browser, except where text is typed or tokens are walked
  const keys = e => {
    const home = el.closest('.snb-browser')
    if (!home || !home.contains(e.target) || e.altKey || e.ctrlKey || e.metaKey) return
    if (e.target.closest('input,select,textarea,[role=grid],[role=slider],[contenteditable=true]')) return
    const d = { ArrowLeft: -1, ArrowRight: 1 }[e.key]
    if (d) step(d)
    else if (e.key === '/') { find.focus(); find.select() }
    else return
    e.preventDefault(); e.stopPropagation()
  }
  // the figure measures itself only when the window changes size, and it comes later than this list
  const nudge = () => window.dispatchEvent(new Event('resize'))
  const watch = new ResizeObserver(() => { nudge(); mark() })
  let tries = 0, later = 0
  const fit = () => {
    const home = el.closest('.snb-browser'), svg = home?.querySelector('.js-plotly-plot .main-svg')
    if (home && !tries) watch.observe(home)
    if (svg && Math.abs(svg.clientWidth - svg.closest('.widget-box').clientWidth) < 3 || ++tries > 60) return
    if (svg) nudge()
    later = setTimeout(fit, 150)
  }
  if (model.get('searchable')) { document.addEventListener('keydown', keys, true); later = setTimeout(fit, 0) }

  const on = { 'change:rows': () => { at = -1; build() }, 'change:feature': mark, 'change:title change:count change:order change:alive_only change:query': words }
  build(); words()
  for (const [k, f] of Object.entries(on)) model.on(k, f)
  return () => { clearTimeout(wait); clearTimeout(later); watch.disconnect(); document.removeEventListener('keydown', keys, true); for (const [k, f] of Object.entries(on)) model.off(k, f) }
}
export default { render }
