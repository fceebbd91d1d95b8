//! The rows of a source as SQL names them: what stands behind FROM and WHERE.

use super::sql::{Sql, Table, quoted};
use super::statement::{Dialect, fragment};
use super::trouble::Trouble;
use super::{Rows, Source};

/// The rows that are read, as they stand behind FROM and WHERE.
#[derive(Clone)]
pub(super) struct Relation {
    pub dialect: Dialect,
    pub table: Option<Table>,
    pub from: String,
    /// All columns of all rows.
    pub whole: String,
    alias: String,
    filter: Option<String>,
    /// How an error names it.
    pub label: String,
}

impl Relation {
    pub fn new(source: &Source, dialect: Dialect) -> Result<Relation, Trouble> {
        match &source.rows {
            Rows::Table { table, filter } => {
                let name = Table::parse(table).map_err(Trouble::Misconfigured)?;
                let filter = filter.as_deref().map(|filter| fragment(filter, dialect)).transpose();
                Ok(Relation {
                    dialect,
                    from: name.quoted(dialect),
                    whole: format!("SELECT * FROM {}", name.quoted(dialect)),
                    alias: quoted(&name.name, dialect),
                    table: Some(name),
                    filter: filter.map_err(|error| Trouble::Refused(error.context("cannot use the condition")))?,
                    label: format!("table {table}"),
                })
            }
            Rows::Query(query) => {
                let query = fragment(query, dialect);
                let query = query.map_err(|error| Trouble::Refused(error.context("cannot use the query")))?;
                Ok(Relation {
                    dialect,
                    table: None,
                    // The line break ends a comment that may stand at the end.
                    from: format!("({query}\n) AS ksync_rows"),
                    whole: query,
                    alias: "ksync_rows".to_owned(),
                    filter: None,
                    label: "the query".to_owned(),
                })
            }
        }
    }

    /// A column, with its table: a bare name could mean the output column of that name.
    pub fn column(&self, name: &str) -> String {
        format!("{}.{}", self.alias, quoted(name, self.dialect))
    }

    /// `SELECT what FROM rows WHERE`, to which one more condition has to be added.
    pub fn select(&self, what: &str) -> Sql {
        let mut sql = Sql::new(self.dialect, format!("SELECT {what} FROM {} WHERE ", self.from));
        if let Some(filter) = &self.filter {
            sql.push("(").push(filter).push("\n) AND ");
        }
        sql
    }
}
