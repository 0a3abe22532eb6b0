// A prompt as it is typed, in features: heat of one on every token, the strongest of a token, those that several lines share.
function render({ model, el }) {
  const root = add(el, 'div', 'snb snb-panel snb-prompt')
  const bar = add(root, 'div', 'snb-b')
  add(bar, 'span', 'snb-h', 'Try a prompt')
  const seg = add(bar, 'span', 'snb-two')
  seg.setAttribute('role', 'group'); seg.setAttribute('aria-label', 'what the text is')
  const modes = model.get('modes').map(m => {
    const b = add(seg, 'button', '', m)
    b.type = 'button'
    b.addEventListener('click', () => set('mode', m))
    return b
  })
  add(bar, 'span', 'sp')
  const said = add(bar, 'span', 'snb-c')
  said.setAttribute('aria-live', 'polite')
  const area = add(root, 'textarea')
  area.spellcheck = false; area.setAttribute('aria-label', 'prompt'); area.placeholder = 'Type or paste a text; its features follow.'
  const wrong = add(root, 'div', 'snb-wrong')
  wrong.setAttribute('role', 'alert')
  const body = add(root, 'div', 'snb-split')
  const left = add(body, 'div'), right = add(body, 'div', 'snb-side')
  const top = add(left, 'div', 'snb-b')
  const what = add(top, 'span', 'snb-q')
  add(top, 'span', 'sp')
  const legend = add(top, 'span', 'snb-l'), lo = add(legend, 'span'), _ = add(legend, 'i'), hi = add(legend, 'span')
  legend.setAttribute('role', 'img')
  const same = (a, b) => a.length === b.length && a.every((v, i) => v === b[i])
  const words = strip(left, 'tokens of the prompt', {
    choose: (i, j) => set('token', same(model.get('token'), [i, j]) ? [] : [i, j]),
    leave: () => set('token', []),
    tip: (i, j) => `${visible(model.get('rows')[i][j])} · position ${j} · ` + (model.get('tops')[i][j].slice(0, 3).map(([f, v]) => `${f} ${about(name(f))} ${show(v, 3)}`).join(', ') || 'no feature is active'),
  })
  const note = add(left, 'div', 'snb-c')
  const head = add(right, 'div', 'snb-b')
  const title = add(head, 'span', 'snb-q')
  const share = add(head, 'select')
  share.setAttribute('aria-label', 'on how many lines')
  for (const s of model.get('shares')) add(share, 'option', '', s).value = s
  const list = add(right, 'div', 'snb-flist')
  const foot = add(right, 'div', 'snb-c')

  const set = (k, v) => { model.set(k, v); model.save_changes() }
  const name = f => model.get('about')[f] ?? ''
  let rows = null
  const text = () => {
    const lines = model.get('labels')
    if (rows !== model.get('rows')) { rows = model.get('rows'); words.build(rows, lines) }
    root.classList.toggle('breaks', !lines.length)
    const f = model.get('feature'), vmax = model.get('vmax'), v = floats(model.get('values'))
    words.paint(v, vmax)
    const signed = v.some(x => x < 0)
    legend.className = signed ? 'snb-l two' : 'snb-l'
    legend.style.visibility = rows.length && f >= 0 ? '' : 'hidden'
    lo.textContent = signed ? show(-vmax, 3) : '0'; hi.textContent = show(vmax, 3)
    legend.setAttribute('aria-label', `colour scale from ${lo.textContent} to ${hi.textContent}`)
    what.textContent = f < 0 ? 'Choose a feature to see where it is active' : `Feature ${f} · ${about(name(f))}` + (rows.length && !v.some(x => x) ? ': not active here' : '')
    note.textContent = model.get('note')
  }
  const side = () => {
    const p = model.get('token'), lines = model.get('labels').length > 0, chosen = p.length === 2 && rows[p[0]]?.[p[1]] !== undefined
    share.hidden = !lines || chosen; share.value = model.get('share')
    title.textContent = chosen ? `Active on “${visible(rows[p[0]][p[1]])}”` : lines ? 'Active on' : 'Strongest in this text'
    const most = model.get('maxima'), now = model.get('feature')
    const found = chosen ? model.get('tops')[p[0]][p[1]].map(([f, v]) => [f, show(v, 3), most[f] ? Math.abs(v) / most[f] : 0]) : model.get('listed')
    const kept = list.contains(document.activeElement) ? document.activeElement.dataset.id : undefined
    list.replaceChildren(...found.map(([f, v, part]) => {
      const b = add(null, 'button', 'snb-fr')
      b.type = 'button'; b.dataset.id = f; b.setAttribute('aria-pressed', f === now)
      add(b, 'b', '', String(f)); add(b, 'span', '', about(name(f))); add(b, 'i').style.width = Math.round(2 + 38 * Math.min(1, part)) + 'px'; add(b, 'em', '', v)
      b.title = `feature ${f} · ${visible(name(f))} · ${v}`
      return b
    }))
    if (!found.length) add(list, 'div', 'snb-c', rows.length ? chosen ? 'No feature is active on this token.' : model.get('none') : 'Nothing is read yet.')
    if (kept !== undefined) list.querySelector(`[data-id="${kept}"]`)?.focus()
    foot.textContent = chosen ? 'Bars: share of the largest activation in the index. Esc or a second click leaves the token.' : model.get('told')
    words.mark(chosen ? [p.join()] : [])
  }
  const all = () => {
    const missing = model.get('missing')
    wrong.textContent = missing || model.get('error'); wrong.hidden = !wrong.textContent
    area.disabled = !!missing; body.hidden = !!missing; seg.hidden = !!missing
    modes.forEach(b => b.setAttribute('aria-pressed', b.textContent === model.get('mode')))
    said.textContent = model.get('said')
    text(); side()
  }
  list.addEventListener('click', e => { const b = e.target.closest('.snb-fr'); if (b) set('feature', Number(b.dataset.id)) })
  list.addEventListener('keydown', e => {
    const d = { ArrowDown: 'nextElementSibling', ArrowUp: 'previousElementSibling' }[e.key]
    if (!d || !e.target.closest('.snb-fr')) return
    e.target.closest('.snb-fr')[d]?.focus?.()
    e.preventDefault(); e.stopPropagation()
  })
  share.addEventListener('change', () => set('share', share.value))
  const typed = typing(area, model, 3)
  all()
  const on = { 'change:version': all, 'change:token': side, 'change:text': typed.told, 'change:missing': all }
  for (const [k, f] of Object.entries(on)) model.on(k, f)
  return () => { typed.stop(); for (const [k, f] of Object.entries(on)) model.off(k, f) }
}
export default { render }
