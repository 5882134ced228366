//! The administrator's password: in a variable, or in a file that a variable names, such as a mounted secret. It is not in the
//! configuration file, so it is no setting.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

use super::{ADMIN_PASSWORD, ADMIN_PASSWORD_FILE, Environment};
use crate::config::ConfigError;
use crate::config::settings::Origin;
use crate::domain::password::{AdminPassword, PASSWORD_CHARS_MAX};

/// The longest password in UTF-8, its line ending, and one byte more to detect a longer one.
const FILE_BYTES_MAX: usize = PASSWORD_CHARS_MAX * 4 + 3;

impl Environment<'_> {
    /// The administrator's password, if one of its two variables is set.
    pub(in crate::config) fn admin_password(&self) -> Result<Option<AdminPassword>, ConfigError> {
        let text = self.text(&ADMIN_PASSWORD)?.map(Zeroizing::new);
        let file = self.own_path(&ADMIN_PASSWORD_FILE)?;
        let (text, variable) = match (text, file) {
            (None, None) => return Ok(None),
            (Some(text), None) => (text, &ADMIN_PASSWORD),
            (None, Some(path)) => {
                let text = read(&path).map_err(|reason| Origin::Environment.error(&ADMIN_PASSWORD_FILE, reason))?;
                (text, &ADMIN_PASSWORD_FILE)
            }
            (Some(_), Some(_)) => {
                let reason = format!("cannot be set beside {}: set only one of them", ADMIN_PASSWORD.name);
                return Err(Origin::Environment.error(&ADMIN_PASSWORD_FILE, reason));
            }
        };
        // The reason does not repeat the text.
        let password = text.parse().map_err(|unfit| Origin::Environment.error(variable, format!("{unfit}")));
        password.map(Some)
    }
}

/// The content of a file, without its line ending.
fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    let failed = |error: io::Error| format!("cannot read `{}`: {error}", path.display());
    // Full capacity from the start: growing would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX));
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX as u64).read_to_string(&mut text).map_err(failed)?;
    if let Some(line) = text.strip_suffix('\n') {
        let length = line.strip_suffix('\r').unwrap_or(line).len();
        text.truncate(length);
    }
    if text.is_empty() {
        return Err(format!("there is no password in `{}`: the file is empty", path.display()));
    }
    Ok(text)
}
