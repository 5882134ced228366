//! `fluxserve admin`: the password of the web console and the management routes. Never an argument, which other users of the
//! machine could read.

use std::io::{BufRead, Read as _, Write};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use zeroize::Zeroizing;

use crate::app::Keys;
use crate::auth::Actor;
use crate::config::Config;
use crate::domain::password::{AdminPassword, PASSWORD_CHARS_MAX};

/// Longest line that is read: up to four bytes per character, and two for the line ending.
const LINE_BYTES_MAX: usize = PASSWORD_CHARS_MAX * 4 + 2;

/// Commands on the administrator.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Set the administrator's password, asked for or read as a line of standard input
    ///
    /// Ends all sessions. Applies from the next request on.
    SetPassword,
}

/// Where a password comes from.
pub enum PasswordInput<'a> {
    /// A prompt, twice, without echo.
    Terminal,
    /// The first line of a reader.
    Line(&'a mut dyn BufRead),
}

/// Runs one of the commands.
pub(super) async fn run(
    command: AdminCommand,
    config: &Config,
    input: PasswordInput<'_>,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let AdminCommand::SetPassword = command;
    let password = match input {
        PasswordInput::Terminal => ask()?,
        PasswordInput::Line(lines) => read_line(lines)?,
    };
    let keys = Keys::open(config).await?;
    let outcome = keys.admin.set_password(&password, &Actor::CommandLine).await;
    keys.store.close().await;
    outcome?;
    writeln!(notes, "set the administrator's password; all sessions have ended")?;
    if config.admin_password.is_some() {
        writeln!(notes, "note: the next start resets it to the one in the environment")?;
    }
    Ok(())
}

fn ask() -> anyhow::Result<AdminPassword> {
    let terminal = console::Term::stderr();
    let read = |prompt: &str| -> anyhow::Result<Zeroizing<String>> {
        terminal.write_str(prompt)?;
        Ok(Zeroizing::new(terminal.read_secure_line().context("reading the password")?))
    };
    let password = read("New password for the administrator: ")?.parse()?;
    if read("Once more: ")?.as_str() != AdminPassword::reveal(&password) {
        bail!("the two passwords differ");
    }
    Ok(password)
}

fn read_line(lines: &mut dyn BufRead) -> anyhow::Result<AdminPassword> {
    let mut line = Zeroizing::new(String::with_capacity(LINE_BYTES_MAX));
    lines.take(LINE_BYTES_MAX as u64).read_line(&mut line).context("reading the password from standard input")?;
    Ok(line.trim_end_matches(['\r', '\n']).parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_password_with_its_blanks() {
        for (text, expected) in [
            (" a good password \n", " a good password "),
            ("a good password", "a good password"),
            ("a good password\r\nand more\n", "a good password"),
        ] {
            assert_eq!(read_line(&mut text.as_bytes()).expect("fit").reveal(), expected);
        }
        for unfit in ["", "\n", "short\n", &"x".repeat(5000)] {
            let error = read_line(&mut unfit.as_bytes()).expect_err("unfit").to_string();
            assert!(error.contains("12 to 256"), "{error}");
        }
    }
}
