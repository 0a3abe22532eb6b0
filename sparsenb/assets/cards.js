// Turns a list of cards on a static page: choose, step, search, follow neighbours.
(() => {
  for (const root of document.querySelectorAll('.snb-cards:not([data-on])')) {
    root.dataset.on = '1'
    const one = q => root.querySelector(q), select = one('select'), find = one('input[type=search]'), count = one('[aria-live]')
    const cards = new Map([...root.querySelectorAll('[data-card]')].map(c => [c.dataset.card, c]))
    const options = [...select.options]
    const texts = new Map([...cards].map(([id, c]) => [id, (id + ' ' + c.textContent).toLowerCase()]))
    const show = id => {
      for (const [k, c] of cards) c.hidden = k !== id
      select.value = id
      one('.prev').disabled = select.selectedIndex <= 0
      one('.next').disabled = select.selectedIndex >= select.options.length - 1
    }
    const step = d => { const o = select.options[select.selectedIndex + d]; if (o) show(o.value) }
    const search = () => {
      const q = find.value.trim().toLowerCase(), now = select.value
      const hits = options.filter(o => !q || texts.get(o.value).includes(q))
      select.replaceChildren(...hits)
      count.textContent = hits.length + (hits.length === 1 ? ' card' : ' cards')
      if (hits.length) show(hits.some(o => o.value === now) ? now : hits[0].value)
    }
    for (const cell of root.querySelectorAll('[data-feature]')) {
      const id = cell.dataset.feature
      if (!cards.has(id)) continue
      const go = document.createElement('button')
      go.type = 'button'; go.className = 'go'; go.textContent = cell.textContent
      go.setAttribute('aria-label', 'show feature ' + id)
      go.addEventListener('click', () => { if (find.value) { find.value = ''; search() } show(id); select.focus() })
      cell.replaceChildren(go)
    }
    one('.prev').addEventListener('click', () => step(-1))
    one('.next').addEventListener('click', () => step(1))
    select.addEventListener('change', () => show(select.value))
    find.addEventListener('input', search)
    root.addEventListener('keydown', e => {
      if (e.target.matches('input,select') || e.altKey || e.ctrlKey || e.metaKey) return
      const d = { ArrowLeft: -1, ArrowRight: 1 }[e.key]
      if (d) { step(d); e.preventDefault(); e.stopPropagation() }
      else if (e.key === '/') { find.focus(); e.preventDefault(); e.stopPropagation() }
    })
    show(select.value)
  }
})()
