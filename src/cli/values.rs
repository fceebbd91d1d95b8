//! How durations, sizes and times are written on a command line.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use bytesize::ByteSize;
use jiff::Timestamp;

/// `5m`, `300s`, `1h 30m`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).with_context(|| format!("'{text}' is not a duration"));
    }
    humantime::parse_duration(text).context("a duration is written as 5m, 300s or 500ms")
}

/// `8MiB`, `64KiB`; a bare number is bytes.
pub fn size(text: &str) -> Result<usize> {
    let size = ByteSize::from_str(text).ok().context("a size is written as 8MiB or 64KiB")?;
    ensure!(size.as_u64() > 0, "a size is more than 0");
    Ok(usize::try_from(size.as_u64())?)
}

/// `2026-11-22T03:00Z`.
pub fn time(text: &str) -> Result<SystemTime> {
    let time = text.parse::<Timestamp>().context("a time is written as 2026-11-22T03:00Z")?;
    Ok(time.into())
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn durations_sizes_and_times_are_read_as_people_write_them() {
        assert_eq!(duration("5m").unwrap(), Duration::from_secs(300));
        assert_eq!(duration("300").unwrap(), Duration::from_secs(300));
        assert_eq!(duration("0.5").unwrap(), Duration::from_millis(500));
        assert!(duration("-1").is_err() && duration("5 apples").is_err() && duration("").is_err());
        assert_eq!(size("8MiB").unwrap(), 8 << 20);
        assert_eq!(size("1000").unwrap(), 1000);
        assert!(size("0").is_err() && size("-1").is_err() && size("x").is_err());
        assert_eq!(time("1970-01-02T00:00Z").unwrap(), UNIX_EPOCH + Duration::from_secs(86_400));
        assert!(time("tomorrow").is_err());
    }
}
