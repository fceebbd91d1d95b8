//! What MySQL's and MariaDB's own clients take from `~/.my.cnf` where their command line says nothing.

use std::path::Path;

use log::warn;
use sqlx::mysql::MySqlConnectOptions;

/// The `[client]` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct MyCnf {
    user: Option<String>,
    password: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    socket: Option<String>,
}

/// Takes from the file what the URL leaves out: user and password, and where it names no host, the server.
pub(super) fn complete(options: MySqlConnectOptions, url: &str) -> MySqlConnectOptions {
    let Some(home) = std::env::var_os("HOME") else { return options };
    let file = Path::new(&home).join(".my.cnf");
    match std::fs::read_to_string(&file) {
        Ok(text) => MyCnf::parse(&text).complete(options, url),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => options,
        Err(error) => {
            warn!("cannot read {}: {error}", file.display());
            options
        }
    }
}

impl MyCnf {
    /// The syntax is that of the manual: `option = value`, quotes around values, `#` and `;` begin comments. What is not
    /// known is passed over, as is `!include`.
    fn parse(text: &str) -> MyCnf {
        let (mut found, mut is_client) = (MyCnf::default(), false);
        for line in text.lines().map(str::trim) {
            if let Some(group) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
                is_client = group.trim() == "client";
            } else if is_client && let Some((name, value)) = line.split_once('=') {
                let value = Some(value_of(value.trim()));
                match name.trim() {
                    "user" => found.user = value,
                    "password" => found.password = value,
                    "host" => found.host = value,
                    "port" => found.port = value.and_then(|value| value.parse().ok()),
                    "socket" => found.socket = value,
                    _ => {}
                }
            }
        }
        found
    }

    fn complete(self, mut options: MySqlConnectOptions, url: &str) -> MySqlConnectOptions {
        let authority = url.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?']).next().unwrap_or(""));
        let (login, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        if login.is_empty()
            && let Some(user) = &self.user
        {
            options = options.username(user);
        }
        if !login.contains(':')
            && let Some(password) = &self.password
        {
            options = options.password(password);
        }
        if host.is_empty() {
            options = match (self.host, self.socket) {
                (Some(host), _) => options.host(&host),
                (None, Some(socket)) => options.socket(socket),
                (None, None) => options,
            };
            options = self.port.map_or(options.clone(), |port| options.port(port));
        }
        options
    }
}

/// Without its quotes, or a comment that stands behind it.
fn value_of(text: &str) -> String {
    match text.chars().next().filter(|c| matches!(c, '\'' | '"')) {
        Some(quote) => text[1..].split(quote).next().unwrap_or_default().to_owned(),
        None => text.split(" #").next().unwrap_or_default().trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_section_is_read_as_its_manual_has_it() {
        let text = |text: &str| Some(text.to_owned());
        let found = MyCnf::parse(
            "[mysqld]\nport=1\n# a comment\n[client]\nuser = shop # its own\npassword=\"a#b c\"\nhost='db1'\nport = 3307\n\
             ssl\n[mysqldump]\nuser=backup\n",
        );
        let expected =
            MyCnf { user: text("shop"), password: text("a#b c"), host: text("db1"), port: Some(3307), socket: None };
        assert_eq!(found, expected);
    }

    #[test]
    fn it_completes_a_url_and_beats_nothing_in_it() {
        let cnf = MyCnf::parse("[client]\nuser=shop\npassword=secret\nhost=db1\nport=3307\n");
        let complete = |url: &str| {
            let options = cnf.clone().complete(url.parse().unwrap(), url);
            (options.get_username().to_owned(), options.get_host().to_owned(), options.get_port())
        };
        let case = |user: &str, host: &str, port| (user.to_owned(), host.to_owned(), port);
        assert_eq!(complete("mysql:///shop"), case("shop", "db1", 3307));
        assert_eq!(complete("mysql://db2/shop"), case("shop", "db2", 3306));
        assert_eq!(complete("mysql://me@db2:1/shop?ssl-mode=disabled"), case("me", "db2", 1));
    }
}
