// Elements: what is shown is made of text nodes, never of markup.

const byId = (id) => document.getElementById(id)

// An element with these properties, which may be listeners, attributes or members, and these children.
function element(name, properties = {}, ...children) {
  return filled(document.createElement(name), properties, children)
}

function drawing(name, properties = {}, ...children) {
  return filled(document.createElementNS('http://www.w3.org/2000/svg', name), properties, children)
}

function filled(made, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value)
    else if (typeof value === 'boolean') made.toggleAttribute(name, value)
    else made.setAttribute(name, value)
  }
  made.append(...children.filter((child) => child !== null))
  return made
}

// Changes a text only where it differs: a selection stays, and nobody is told twice.
function say(where, text) {
  if (where.textContent !== text) where.textContent = text
}

// A list in which an item keeps its element, and so its focus, for as long as it is there.
function keyed(list, make) {
  const shown = new Map()
  return (items) => {
    const keys = new Set(items.map(({ key }) => key))
    for (const [key, { made }] of shown) {
      if (keys.has(key)) continue
      // Whoever was there with the keyboard is not sent back to the top of the page.
      if (made.contains(document.activeElement)) list.closest('section')?.querySelector('h2').focus()
      made.remove()
      shown.delete(key)
    }
    items.forEach((item, at) => {
      if (!shown.has(item.key)) shown.set(item.key, make(item))
      const { made, update } = shown.get(item.key)
      if (list.children[at] !== made) list.insertBefore(made, list.children[at] ?? null)
      update(item)
    })
  }
}

// Names and values.
function facts() {
  const list = element('dl', { class: 'facts' })
  const update = keyed(list, ({ key }) => {
    const value = element('dd')
    const made = element('div', {}, element('dt', {}, key), value)
    return { made, update: ({ text }) => say(value, text) }
  })
  return { list, update: (all) => update(Object.entries(all).map(([key, text]) => ({ key, text }))) }
}

// A button that does nothing else while it does its work. It stays enabled, or it would lose the focus.
function button(label, work) {
  const made = element('button', { type: 'button' }, label)
  made.addEventListener('click', async () => {
    if (made.ariaBusy === 'true') return
    made.ariaBusy = 'true'
    try {
      await work()
    } catch (error) {
      notice(`Failed: ${error.message}`)
    } finally {
      made.ariaBusy = 'false'
    }
  })
  return made
}

// A button that asks before it does what cannot be undone, or is not quickly undone. `question` says what would be done.
function asked(label, yes, question, work) {
  const ask = element('button', { type: 'button', 'aria-expanded': 'false' }, label)
  const words = element('span')
  const no = element('button', { type: 'button' }, 'Cancel')
  const close = () => {
    box.hidden = true
    ask.hidden = false
    ask.setAttribute('aria-expanded', 'false')
    if (ask.isConnected) ask.focus()
    else byId('letters-title').focus()
  }
  const sure = button(yes, async () => {
    try {
      await work()
    } finally {
      close()
    }
  })
  sure.classList.add('sure')
  const box = element('div', { class: 'question', role: 'group', hidden: true }, words, sure, no)
  ask.addEventListener('click', () => {
    say(words, question())
    box.setAttribute('aria-label', question())
    ask.hidden = true
    ask.setAttribute('aria-expanded', 'true')
    box.hidden = false
    no.focus()
  })
  no.addEventListener('click', close)
  box.addEventListener('keydown', ({ key }) => key === 'Escape' && close())
  return element('div', {}, ask, box)
}

function notice(text) {
  say(byId('notice'), text)
}

