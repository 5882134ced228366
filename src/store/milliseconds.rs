//! Times as the tables store them: milliseconds since the Unix epoch.

use time::OffsetDateTime;

/// The form to store.
#[must_use]
pub fn to_milliseconds(moment: OffsetDateTime) -> i64 {
    // Years −9999 to 9999 in milliseconds fit in 49 bits.
    (moment.unix_timestamp_nanos() / 1_000_000) as i64
}

/// Reads the stored form; `None` for a time beyond the calendar.
#[must_use]
pub fn from_milliseconds(milliseconds: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).ok()
}
