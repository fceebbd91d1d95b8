//! Decimals of MySQL and MariaDB that are longer than what the values of a key are bound as: DECIMAL(65,30).

use anyhow::anyhow;

use super::column::Kind;
use super::relation::Relation;
use super::sql::{Sql, Table};
use super::statement::Dialect;
use super::trouble::Trouble;
use super::value::Value;
use super::{Database, Source, cannot_read};

impl Database {
    /// Fails where a column of the key may have values that are compared only as rounded: rows between such a one and the next
    /// would be passed over, and no statement would find them. Of a table its type says so; of a query all rows are looked at, if
    /// its key has decimals.
    pub async fn refuse_long_decimals(&mut self, source: &Source, key: &[String]) -> Result<(), Trouble> {
        if self.dialect() != Dialect::MySql {
            return Ok(());
        }
        let relation = Relation::new(source, Dialect::MySql)?;
        let long = match &relation.table {
            Some(table) => self.text(&long_column(table, key)).await,
            None => self.rounded_column(&relation, key).await,
        };
        match long.map_err(|trouble| cannot_read(trouble, &relation))? {
            None => Ok(()),
            Some(column) => Err(Trouble::Misconfigured(anyhow!(
                "column {column} of {} cannot be a key: of a DECIMAL more than 35 digits before the point, or 30 behind it, are \
                 not compared exactly; name another --key",
                relation.label
            ))),
        }
    }

    async fn rounded_column(&mut self, relation: &Relation, key: &[String]) -> Result<Option<String>, Trouble> {
        let columns = self.columns(relation).await?;
        for column in columns.into_iter().filter(|column| column.kind == Kind::Literal && key.contains(&column.name)) {
            let (name, mut sql) = (relation.column(&column.name), relation.select("1"));
            sql.push(&format!("{name} <> CAST({name} AS DECIMAL(65,30)) LIMIT 1"));
            if self.exists(&sql).await? {
                return Ok(Some(column.name));
            }
        }
        Ok(None)
    }
}

/// Asks for a column of these whose values may be too long.
fn long_column(table: &Table, key: &[String]) -> Sql {
    let mut sql = Sql::new(
        Dialect::MySql,
        "SELECT CAST(column_name AS CHAR) FROM information_schema.columns
         WHERE data_type = 'decimal' AND (numeric_scale > 30 OR numeric_precision - numeric_scale > 35) AND table_name = ",
    );
    sql.bind("?", &Value::Text(table.name.clone())).push(" AND table_schema = ");
    match &table.schema {
        Some(schema) => sql.bind("?", &Value::Text(schema.clone())),
        None => sql.push("DATABASE()"),
    };
    for (at, name) in key.iter().enumerate() {
        sql.push(if at == 0 { " AND column_name IN (" } else { ", " }).bind("?", &Value::Text(name.clone()));
    }
    sql.push(") LIMIT 1");
    sql
}
