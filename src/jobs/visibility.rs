//! Whose jobs somebody may look at and cancel.

use crate::domain::ids::KeyId;

/// The jobs that are there for somebody. To all others they do not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// Those of one owner.
    Of(KeyId),
    /// All there are.
    All,
}

impl Visibility {
    pub(super) fn covers(self, owner: KeyId) -> bool {
        match self {
            Self::Of(only) => only == owner,
            Self::All => true,
        }
    }
}

impl Visibility {
    /// Whose share of something it is that somebody with this reach takes.
    pub(super) fn owner(self) -> KeyId {
        match self {
            Self::Of(owner) => owner,
            Self::All => KeyId::NONE,
        }
    }
}

impl From<KeyId> for Visibility {
    fn from(owner: KeyId) -> Self {
        Self::Of(owner)
    }
}
