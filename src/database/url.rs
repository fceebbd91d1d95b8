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
    let mut names = parameters.split('&').map(|parameter| parameter.split('=').next().unwrap_or_default());
    let is_meant = |name: &&str| {
        let lower = name.to_lowercase();
        (lower.contains("ssl") || lower.contains("tls")) && !ABOUT_TLS.contains(name)
    };
    match names.find(is_meant) {
        None => Ok(()),
        Some(name) => Err(Trouble::Misconfigured(anyhow!(
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
        for parameters in
            ["", "?sslmode=require&sslrootcert=/ssl/ca.pem", "?connect_timeout=5", "?ssl-ca=x&options=-ctls%3D1"]
        {
            assert!(!refused(parameters), "{parameters}");
        }
    }
}
