//! The URL of a database, as its driver reads it.

use std::str::FromStr;

use anyhow::anyhow;

use super::trouble::Trouble;

/// The parameters about TLS that the drivers know.
const ABOUT_TLS: [&str; 10] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "sslca",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
];

/// What a driver connects with.
pub(super) fn options<Options: FromStr<Err = sqlx::Error>>(url: &str) -> Result<Options, Trouble> {
    refuse_other_words_for_tls(url)?;
    url.parse().map_err(|error| Trouble::from(error).context("cannot use the database URL"))
}

/// A driver passes over what it does not know, and would connect in plain text where `ssl_mode` or `ssl=true` wants TLS.
fn refuse_other_words_for_tls(url: &str) -> Result<(), Trouble> {
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    let mut pairs = parameters.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let wants_tls = |(name, value): &(&str, &str)| {
        let lower = name.to_lowercase();
        let is_about_tls = lower.contains("ssl") || lower.contains("tls");
        is_about_tls && !ABOUT_TLS.contains(name) && !["0", "false", "off", "disable"].contains(value)
    };
    // Where that is said by the right word, others add nothing that could be missed.
    let is_said = pairs.clone().any(|(name, _)| name == "sslmode" || name == "ssl-mode");
    match pairs.find(wants_tls) {
        None => Ok(()),
        Some(_) if is_said => Ok(()),
        Some((name, _)) => Err(Trouble::Misconfigured(anyhow!(
            "the database URL has {name}, which counts for nothing here; TLS is asked for by sslmode=require or \
             sslmode=verify-full (ssl-mode=REQUIRED or ssl-mode=VERIFY_IDENTITY of MySQL and MariaDB)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_passed_over_is_refused_where_it_asks_for_tls() {
        let refused = |parameters: &str| {
            refuse_other_words_for_tls(&format!("postgres://me:sslmode@tls/shop{parameters}")).is_err()
        };
        for parameters in
            ["?ssl_mode=verify-full", "?ssl=true", "?connect_timeout=5&useSSL=1", "?tls=on", "?sslrootcerts=x"]
        {
            assert!(refused(parameters), "{parameters}");
        }
        for parameters in [
            "",
            "?sslmode=require&sslrootcert=/ssl/ca.pem",
            "?connect_timeout=5",
            "?ssl=false",
            "?sslmode=verify-full&sslsni=1",
            "?ssl-ca=x&options=-ctls%3D1",
        ] {
            assert!(!refused(parameters), "{parameters}");
        }
    }
}
