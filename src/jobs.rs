//! The life of a job from acceptance to stored picture. Knows nothing of HTTP or auth.
