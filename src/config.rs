//! Configuration: file, then environment, then flags; each variable is named once, in `env`.
