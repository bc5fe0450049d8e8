// Drives a page in Chromium, step by step, for whoever writes the steps.
//
// Usage: drive.mjs CHROMIUM, in the folder that playwright-core is installed in
//
// Reads steps from standard input, one JSON string a line: the body of an async function of `page`, the page, and `seen`,
// what it has asked for and complained of so far. After each it prints one JSON object a line: what the step has
// returned, as `value`, or why it failed, as `error`. Ends with its input.

import { createInterface } from 'node:readline'

import { launch } from './chromium.mjs'

const PATIENCE_MS = 30_000

const AsyncFunction = (async () => {}).constructor

const browser = await launch(process.argv[2])
const page = await browser.newPage()
page.setDefaultTimeout(PATIENCE_MS)
const seen = { complaints: [], requests: [] }
page.on('console', (message) => {
  if (['error', 'warning'].includes(message.type())) seen.complaints.push(message.text())
})
page.on('pageerror', (error) => seen.complaints.push(`${error}`))
page.on('request', (request) => seen.requests.push(request.url()))

for await (const line of createInterface({ input: process.stdin })) {
  try {
    const value = await new AsyncFunction('page', 'seen', JSON.parse(line))(page, seen)
    console.log(JSON.stringify({ value: value ?? null }))
  } catch (error) {
    const shown = await page.locator('body').innerText().catch(() => '')
    console.log(JSON.stringify({ error: `${error.message}\nThe page says:\n${shown}` }))
  }
}
await browser.close()
