//! Parses the command line and runs it; an error becomes a message and an exit code: 0 done, 1 failed, 2 not understood.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use fluxserve::cli::{self, Cli, PasswordInput};
use fluxserve::telemetry::pipe::Pipe;

/// Longest that the exit waits for somebody to read why.
const LAST_WORD_DEADLINE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let said = error.render().to_string();
            let shown = cli::without_secrets(&said);
            if shown == said {
                // With 2 for what it does not understand, and with 0 for `--help`.
                error.exit();
            }
            // It repeats what was typed, and a key was.
            last_word(&shown);
            return ExitCode::from(2);
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            last_word(&format!("error: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Says it, if anybody reads it. When it cannot be written, the exit code is all that is left to say.
fn last_word(text: &str) {
    if let Ok(pipe) = Pipe::start("error", io::stderr()) {
        pipe.send(text.as_bytes());
        let _ = pipe.flush(LAST_WORD_DEADLINE);
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut lines = io::BufReader::new(io::stdin());
    let input = if io::stdin().is_terminal() { PasswordInput::Terminal } else { PasswordInput::Line(&mut lines) };
    runtime.block_on(cli::run(cli, input, &mut io::stdout(), &mut io::stderr()))
}
