//! A new administrator's password: long enough, and never shown again.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

/// Shortest password, in Unicode characters.
pub const PASSWORD_CHARS_MIN: usize = 12;
/// Longest password, in Unicode characters: anything longer is a mistake, and costly to hash.
pub const PASSWORD_CHARS_MAX: usize = 256;

/// A new password. Cannot be serialized or printed by accident, and is wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminPassword(Zeroizing<String>);

/// A text that cannot be a password. The error does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a password must be {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters, none of them a control character")]
pub struct UnfitPassword;

impl AdminPassword {
    /// The password itself: for hashing, and for showing a generated one once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for AdminPassword {
    type Err = UnfitPassword;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_length = (PASSWORD_CHARS_MIN..=PASSWORD_CHARS_MAX).contains(&text.chars().count());
        if !is_length || text.chars().any(char::is_control) {
            return Err(UnfitPassword);
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl fmt::Debug for AdminPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminPassword(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_counted_and_nothing_is_shown() {
        for unfit in ["", "short", "elevenchars", "with a\nline break", &"x".repeat(PASSWORD_CHARS_MAX + 1)] {
            assert_eq!(unfit.parse::<AdminPassword>(), Err(UnfitPassword), "{unfit:?}");
        }
        for fit in ["twelve chars", &"ü".repeat(PASSWORD_CHARS_MIN), &"ü".repeat(PASSWORD_CHARS_MAX)] {
            let password: AdminPassword = fit.parse().expect("fit");
            assert_eq!(password.reveal(), fit);
            assert_eq!(format!("{password:?}"), "AdminPassword(…)");
        }
    }
}
