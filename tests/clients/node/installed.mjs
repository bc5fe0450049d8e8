// Loads an SDK: they are not beside these scripts, but in the folder that a script is run in.

import { createRequire } from 'node:module'

export const installed = createRequire(`${process.cwd()}/`)
