//! The doorbell.

use std::process::ExitCode;

fn main() -> ExitCode {
    segspool::cli::main()
}
