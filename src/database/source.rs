//! Which rows are read, and what tells them apart.

use anyhow::anyhow;

use super::column::Column;
use super::key::Key;
use super::relation::Relation;
use super::scan::Scan;
use super::sql::Table;
use super::statement::Dialect;
use super::trouble::Trouble;
use super::{Connection, Database, cannot_read};

/// What is read, and by which key.
#[derive(Clone, Debug)]
pub struct Source {
    pub rows: Rows,
    /// The columns of the key; empty: those of the table's primary key.
    pub key: Vec<String>,
    pub payload: Payload,
}

/// What is announced of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Payload {
    /// The columns of its key.
    #[default]
    Key,
    Columns(Vec<String>),
    Row,
    /// These columns, or where none is named all of them, each as the database itself has it in JSON: Postgres by to_json.
    Json(Vec<String>),
}

#[derive(Clone, Debug)]
pub enum Rows {
    Table {
        /// `products` or `shop.products`.
        table: String,
        /// A condition as it stands behind WHERE.
        filter: Option<String>,
    },
    Query(String),
}

impl Database {
    /// About how many rows of the source a scan has left, of which so many were done before, where that is known without reading
    /// them: of whole tables. SQLite counts those that are left.
    pub async fn estimate(&mut self, source: &Source, (scan, done): (&Scan, u64)) -> Result<Option<u64>, Trouble> {
        let Rows::Table { table, filter: None } = &source.rows else {
            return Ok(None);
        };
        let table = Table::parse(table).map_err(Trouble::Misconfigured)?;
        let all = match &mut self.connection {
            Connection::Postgres(postgres) => postgres.estimate(&table).await?,
            Connection::MySql(mysql) => mysql.estimate(&table).await?,
            Connection::Sqlite(_) => return self.count(scan).await.map(Some),
        };
        let left = all.and_then(|all| u64::try_from(all).ok()).map(|all| all.saturating_sub(done));
        // Postgres says 0 or -1 of a table that it has not counted yet; and an estimate that is used up tells nothing.
        Ok(left.filter(|left| *left > 0))
    }

    /// Checks that the rows can be read in order, each once, and stands before the first.
    pub async fn prepare(&mut self, source: &Source) -> Result<Scan, Trouble> {
        let Found { relation, columns, key } = self.find(source).await?;
        let members = match &source.payload {
            Payload::Key => key.clone(),
            Payload::Columns(names) | Payload::Json(names) if !names.is_empty() => {
                names.iter().map(|name| find(name, &columns, &relation)).collect::<Result<Vec<_>, _>>()?
            }
            _ => columns.iter().map(|column| find(&column.name, &columns, &relation)).collect::<Result<Vec<_>, _>>()?,
        };
        let is_json = matches!(source.payload, Payload::Json(_)) && self.dialect() == Dialect::Postgres;
        let scan = Scan::new(relation, key, members, is_json);
        let never_null = match &scan.relation.table {
            Some(table) => self.never_null(table).await.map_err(|trouble| cannot_read(trouble, &scan.relation))?,
            None => Vec::new(),
        };
        // Otherwise the database may have to go through all rows.
        let is_null_free = scan.key.iter().all(|column| never_null.contains(&column.name));
        if !is_null_free && self.exists(&scan.nulls()).await.map_err(|trouble| cannot_read(trouble, &scan.relation))? {
            return Err(scan.null_key());
        }
        Ok(scan)
    }

    /// The key of the source, for rows that others name by it.
    pub async fn key(&mut self, source: &Source) -> Result<Key, Trouble> {
        let Found { relation, key, .. } = self.find(source).await?;
        Ok(Key::new(key.into(), relation.label))
    }

    async fn find(&mut self, source: &Source) -> Result<Found, Trouble> {
        let relation = Relation::new(source, self.dialect())?;
        let columns = self.columns(&relation).await.map_err(|trouble| cannot_read(trouble, &relation))?;
        let primary = match &relation.table {
            Some(table) => self.primary_key(table).await.map_err(|trouble| cannot_read(trouble, &relation))?,
            None => Vec::new(),
        };
        let names = if source.key.is_empty() { &primary } else { &source.key };
        if names.is_empty() {
            let label = &relation.label;
            return Err(Trouble::Misconfigured(match relation.table {
                Some(_) => anyhow!("{label} has no primary key; name the columns of a unique key with --key"),
                None => anyhow!("{label} has no primary key of its own; name its key columns with --key"),
            }));
        }
        let key = names.iter().map(|name| find_key(name, &columns, &relation)).collect::<Result<Vec<_>, _>>()?;
        Ok(Found { relation, columns, key })
    }
}

/// What the database knows of a source.
struct Found {
    relation: Relation,
    columns: Vec<Column>,
    key: Vec<Column>,
}

fn find_key(name: &str, columns: &[Column], relation: &Relation) -> Result<Column, Trouble> {
    let column = find(name, columns, relation)?;
    match column.unfit {
        None => Ok(column),
        Some(why) => {
            let label = &relation.label;
            Err(Trouble::Misconfigured(anyhow!("column {name} of {label} cannot be a key: {why}")))
        }
    }
}

fn find(name: &str, columns: &[Column], relation: &Relation) -> Result<Column, Trouble> {
    let is_it = |column: &&Column| match relation.dialect {
        Dialect::Postgres => column.name == name,
        Dialect::MySql | Dialect::Sqlite => column.name.to_lowercase() == name.to_lowercase(),
    };
    let label = &relation.label;
    let found = columns.iter().filter(is_it).collect::<Vec<_>>();
    let error = match found.as_slice() {
        [column] => return Ok(Column::clone(column)),
        [] => {
            let names = columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>();
            anyhow!("{label} has no column '{name}'; its columns are {}", names.join(", "))
        }
        _ => anyhow!("{label} has several columns '{name}'; give them different names"),
    };
    Err(Trouble::Misconfigured(error))
}
