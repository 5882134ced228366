//! Pixels to PNG, JPEG or WebP bytes.
