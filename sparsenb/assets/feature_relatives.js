// Features like one, in short lists; a row goes there.
function render({ model, el }) {
  const root = add(el, 'div', 'snb snb-list snb-near'), box = add(root, 'div')
  const area = add(root, 'div'), head = add(area, 'div', 'snb-h', 'Notes'), text = add(area, 'textarea')
  text.setAttribute('aria-label', 'notes on this feature'); text.rows = 3; text.placeholder = 'what you think it is'
  const build = () => box.replaceChildren(...model.get('groups').map(({ title, rows, caption, plain }) => {
    const g = add(null, 'section')
    g.setAttribute('aria-label', title)
    add(g, 'div', 'snb-h', title)
    for (const [id, about, value] of rows) {
      const r = add(g, plain ? 'div' : 'button', 'snb-row')
      if (!plain) { r.type = 'button'; r.dataset.id = id; r.setAttribute('aria-label', `feature ${id}, ${visible(about)}, ${value}`) }
      r.title = `${id} ${visible(about)} ${value}`.trim()
      add(r, 'b', '', String(id)); add(r, 'span', '', visible(about)); add(r, 'em', '', value)
    }
    if (caption) add(g, 'div', 'snb-c', visible(caption))
    return g
  }))
  const words = () => { area.hidden = !model.get('noted'); if (document.activeElement !== text) text.value = model.get('note') }
  const keep = () => { if (text.value !== model.get('note')) model.send({ note: text.value }) }
  text.addEventListener('blur', keep)
  text.addEventListener('keydown', e => { if (e.key === 'Escape') text.blur(); e.stopPropagation() })
  box.addEventListener('click', e => { const r = e.target.closest('[data-id]'); if (r) model.send({ choose: Number(r.dataset.id) }) })
  box.addEventListener('keydown', e => {
    const d = { ArrowDown: 1, ArrowUp: -1 }[e.key], all = [...box.querySelectorAll('button')], at = all.indexOf(e.target)
    if (!d || at < 0 || e.altKey || e.ctrlKey || e.metaKey) return
    all[Math.max(0, Math.min(all.length - 1, at + d))].focus(); e.preventDefault(); e.stopPropagation()
  })
  build(); words()
  return listen(model, { 'change:groups': build, 'change:note change:noted': words })
}
export default { render }
