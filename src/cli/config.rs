//! Where options come from: the command line, the environment, a configuration file, files of secrets.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail, ensure};
use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, Id};

use super::Tool;
use crate::kafka::Property;

/// Names a file with what `DATABASE_URL` would say.
pub(super) const DATABASE_URL_FILE: &str = "DATABASE_URL_FILE";

/// The file that is read where `--config` names none.
const CONFIG_FILE: &str = "/etc/ksync.conf";

/// flag > environment > file > default; a wrong command line ends the process with status 2.
pub(super) fn parse<T: Tool>(args: Vec<OsString>) -> T {
    let file = config_file(&args).and_then(|file| file.map(|file| assignments(&file)).transpose());
    let lines = match file {
        Ok(lines) => lines.unwrap_or_default(),
        Err(error) => T::command().error(ErrorKind::Io, format!("{error:#}")).exit(),
    };
    let (mut command, unread) = with_defaults(T::command(), &lines);
    let matches = command.try_get_matches_from_mut(args).unwrap_or_else(|error| error.exit());
    // Of what is given otherwise, or only explained, the file need not be there.
    let is_given = |option: &Id| {
        let source = matches.value_source(option.as_str());
        matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    };
    if let Some((_, error)) = unread.iter().find(|(option, _)| !is_given(option)) {
        command.error(ErrorKind::Io, format!("{error:#}")).exit();
    }
    if let Err(error) = refuse_secrets(&matches) {
        command.error(ErrorKind::ValueValidation, format!("{error:#}")).exit();
    }
    T::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Which configuration file holds, before the command line is parsed: it gives the parser its defaults.
fn config_file(args: &[OsString]) -> Result<Option<PathBuf>> {
    // By the rule for all variables it names a file that holds the name; whoever sets it means the file itself.
    ensure!(
        std::env::var_os("KSYNC_CONFIG_FILE").is_none(),
        "KSYNC_CONFIG_FILE counts for nothing; the configuration file is named by KSYNC_CONFIG, or --config"
    );
    let mut args = args.iter().take_while(|arg| *arg != "--");
    let mut named = std::env::var_os("KSYNC_CONFIG").map(PathBuf::from);
    while let Some(arg) = args.next() {
        if arg == "--config" {
            named = args.next().map(PathBuf::from);
        } else if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            named = Some(path.into());
        }
    }
    Ok(named.or_else(|| Path::new(CONFIG_FILE).exists().then(|| CONFIG_FILE.into())))
}

/// The NAME=VALUE lines of a file, as systemd reads an EnvironmentFile: comments, empty lines, quotes around a value.
pub(super) fn assignments(file: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut lines = vec![];
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            bail!("line {number} of {} is not NAME=VALUE", file.display());
        };
        let value = value.trim();
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        lines.push((name.trim().to_owned(), quoted.unwrap_or(value).to_owned()));
    }
    Ok(lines)
}

/// Makes what the file says, and what a KSYNC_.._FILE variable points to, the options' defaults. Gives those, too, of which that
/// cannot be read.
fn with_defaults(command: Command, lines: &[(String, String)]) -> (Command, Vec<(Id, Error)>) {
    let mut unread = vec![];
    let command = command.mut_args(|arg| {
        let Some(name) = arg.get_env().and_then(|name| name.to_str()).map(str::to_owned) else {
            return arg;
        };
        match default(&name, lines) {
            Ok(None) => arg,
            Ok(Some(value)) => {
                // It may be a secret, and --help is for all to see.
                let arg = arg.hide_default_value(true).default_value(value);
                arg.required(false).required_unless_present(Resettable::Reset)
            }
            Err(error) => {
                unread.push((arg.get_id().clone(), error));
                arg.required(false).required_unless_present(Resettable::Reset)
            }
        }
    });
    (command, unread)
}

/// What an option is to be where neither the command line nor its own variable says it.
fn default(name: &str, lines: &[(String, String)]) -> Result<Option<String>> {
    match elsewhere(name, lines)? {
        None if name == "KSYNC_DATABASE" => database_url(lines),
        said => Ok(said),
    }
}

/// What is said of a variable elsewhere than in the environment under its own name.
fn elsewhere(name: &str, lines: &[(String, String)]) -> Result<Option<String>> {
    let of_secret = format!("{name}_FILE");
    if let Some(file) = std::env::var_os(&of_secret) {
        return secret(Path::new(&file)).map(Some);
    }
    match lines.iter().rev().find(|(assigned, _)| *assigned == name || *assigned == of_secret) {
        Some((assigned, file)) if *assigned == of_secret => secret(Path::new(file)).map(Some),
        Some((_, value)) => Ok(Some(value.clone())),
        None => Ok(None),
    }
}

fn secret(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text.trim_end().to_owned())
}

/// The names by which most programs know the database; ours goes before them.
fn database_url(lines: &[(String, String)]) -> Result<Option<String>> {
    match (std::env::var("DATABASE_URL").ok(), std::env::var_os(DATABASE_URL_FILE)) {
        (None, None) => elsewhere("DATABASE_URL", lines),
        // It may be another program's, and not every run needs a database.
        (None, Some(file)) => Ok(secret(Path::new(&file)).ok()),
        (url, _) => Ok(url),
    }
}

/// `ps` shows a command line to everybody.
fn refuse_secrets(matches: &ArgMatches) -> Result<()> {
    let given =
        |id: &str| matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine);
    let urls = [
        ("database", "--database", "DATABASE_URL", "KSYNC_DATABASE_FILE"),
        ("action_database", "--action-database", "KSYNC_ACTION_DATABASE", "KSYNC_ACTION_DATABASE_FILE"),
        ("throttle_database", "--throttle-database", "KSYNC_THROTTLE_DATABASE", "KSYNC_THROTTLE_DATABASE_FILE"),
    ];
    for (id, option, variable, file) in urls {
        if given(id) {
            let url: Option<&String> = matches.get_one(id);
            ensure!(
                !url.is_some_and(|url| has_password(url)),
                "a password in {option} would be seen by everybody on this machine; put the URL into {variable}, or into a \
                 file that {file} names"
            );
        }
    }
    if given("property") {
        for property in matches.get_many::<Property>("property").into_iter().flatten() {
            ensure!(
                !property.is_secret(),
                "the value of {} would be seen by everybody on this machine; put it into a file for -F",
                property.name
            );
        }
    }
    Ok(())
}

fn has_password(url: &str) -> bool {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let authority = address.split_once("://").and_then(|(_, rest)| rest.split('/').next()).unwrap_or_default();
    let in_authority = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    in_authority || query.split('&').any(|pair| pair.starts_with("password="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_is_seen() {
        for url in ["postgres://u:p@h/d", "mysql://u:@h", "postgres://u:p@h:1/d?x=y", "postgres://h/d?password=x"] {
            assert!(has_password(url), "{url}");
        }
        for url in ["postgres://u@h:5432/d", "sqlite:a:b@c", "sqlite:///x:y", "postgres://h/a:b@c?user=u"] {
            assert!(!has_password(url), "{url}");
        }
    }
}
