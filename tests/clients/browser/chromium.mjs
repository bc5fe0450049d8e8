// Starts the system's Chromium, without anything that it would do on a network by itself.

import { installed } from '../node/installed.mjs'

const { chromium } = installed('playwright-core')

export const launch = (executablePath) =>
  chromium.launch({
    executablePath,
    // Chromium's sandbox does not start as root.
    chromiumSandbox: process.getuid() !== 0,
    args: [
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-gpu',
      '--disable-quic',
      '--disable-sync',
      '--no-first-run',
      '--no-proxy-server',
    ],
  })
