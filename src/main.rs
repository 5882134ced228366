//! Parses and runs the command line; an error becomes a message and an exit code: 0 success, 2 usage error, and those of
//! `cli::exit_code`.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use fluxserve::app::Heap;
use fluxserve::cli::{self, Cli, PasswordInput};
use fluxserve::telemetry::pipe::Pipe;

#[global_allocator]
static HEAP: Heap = Heap;

/// Longest wait at exit for the last message to be read.
const LAST_WORD_DEADLINE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let said = error.render().to_string();
            let shown = cli::without_secrets(&said);
            if shown == said {
                // Exits with 2 on a usage error, and with 0 for `--help`.
                error.exit();
            }
            // The message repeats the arguments, and one of them is a key.
            last_word(&shown);
            return ExitCode::from(2);
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            last_word(&format!("error: {error:#}\n"));
            ExitCode::from(cli::exit_code(&error))
        }
    }
}

/// Writes to standard error, within the deadline. If that fails, only the exit code is left.
fn last_word(text: &str) {
    if let Ok(pipe) = Pipe::start("error", io::stderr()) {
        pipe.send(text.as_bytes());
        let _ = pipe.flush(LAST_WORD_DEADLINE);
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let mut lines = io::BufReader::new(io::stdin());
    let input = if io::stdin().is_terminal() { PasswordInput::Terminal } else { PasswordInput::Line(&mut lines) };
    cli::run_to_end(cli, input, &mut io::stdout(), &mut io::stderr())
}
