//! The URL of a database, as its driver reads it.

use std::str::FromStr;

use anyhow::anyhow;

use super::statement::Dialect;
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
    refuse_words_of_another(url)?;
    refuse_other_words_for_tls(url)?;
    url.parse().map_err(|error| Trouble::from(error).context("cannot use the database URL"))
}

fn parameters(url: &str) -> impl Iterator<Item = (&str, &str)> + Clone {
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    parameters.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// A driver that passes over the file would check no certificate against it, whatever is said of TLS besides.
fn refuse_words_of_another(url: &str) -> Result<(), Trouble> {
    let dialect = Dialect::of(url).map_err(Trouble::Misconfigured)?;
    let right = |name: &str| match (dialect, name) {
        (Dialect::Postgres, "sslca") => Some("sslrootcert"),
        (Dialect::MySql, "sslrootcert" | "ssl-root-cert") => Some("ssl-ca"),
        _ => None,
    };
    match parameters(url).find_map(|(name, _)| Some((name, right(name)?))) {
        None => Ok(()),
        Some((name, right)) => Err(Trouble::Misconfigured(anyhow!(
            "the database URL has {name}, which counts for nothing with this database; write {right}"
        ))),
    }
}

/// A driver passes over what it does not know, and would connect in plain text where `ssl_mode` or `ssl=true` wants TLS.
fn refuse_other_words_for_tls(url: &str) -> Result<(), Trouble> {
    let mut pairs = parameters(url);
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
    fn a_word_that_only_another_database_knows_is_refused_with_the_right_one() {
        let told = |url: &str| match refuse_words_of_another(url) {
            Err(Trouble::Misconfigured(error)) => error.to_string(),
            _ => String::new(),
        };
        for (url, name, right) in [
            ("postgres://h/d?sslmode=verify-full&sslca=/ca.pem", "sslca", "sslrootcert"),
            ("mysql://h/d?ssl-mode=VERIFY_CA&sslrootcert=/ca.pem", "sslrootcert", "ssl-ca"),
            ("mariadb://h/d?ssl-root-cert=/ca.pem", "ssl-root-cert", "ssl-ca"),
        ] {
            let text =
                format!("the database URL has {name}, which counts for nothing with this database; write {right}");
            assert_eq!(told(url), text, "{url}");
        }
        for url in [
            "postgres://h/d?sslrootcert=/ca.pem&ssl-ca=/ca.pem&ssl-root-cert=/ca.pem",
            "mysql://h/d?sslca=/ca.pem&ssl-ca=/ca.pem&sslcert=x&sslkey=y",
            "postgres://sslca@h/sslca?options=sslca",
            "sqlite:shop.db?mode=ro",
        ] {
            assert_eq!(told(url), "", "{url}");
        }
    }

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
