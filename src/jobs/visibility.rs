//! Which jobs a caller may see and cancel.

use crate::domain::ids::KeyId;

/// The jobs that a caller can see. All others do not exist for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// Jobs of one owner.
    Of(KeyId),
    /// All jobs.
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
    /// The owner whose limits such a caller counts against.
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
