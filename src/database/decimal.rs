//! Decimals of MySQL and MariaDB, which have up to 65 digits: values are bound so that they are compared digit by digit.

use anyhow::anyhow;

use super::column::Kind;
use super::relation::Relation;
use super::statement::Dialect;
use super::trouble::Trouble;
use super::{Database, Source, cannot_read};

/// What a decimal is compared with where nobody knows how many digits it may have.
pub(super) const OF_QUERY: &str = "CAST(? AS DECIMAL(65,30))";

/// What a column is compared with that has at most so many digits before the point, and behind it.
///
/// It takes all of these, and where there is room (a decimal has 65 digits) some behind them, up to 30: a number that others name is
/// not rounded to one that a row may have.
pub(super) fn exact(before: i64, behind: i64) -> String {
    format!("CAST(? AS DECIMAL(65,{}))", behind.max((65 - before).min(30)))
}

impl Database {
    /// Fails where a column of the key has values that are compared only as rounded: rows between such a one and the next would be
    /// passed over, and no statement would find them. No table has such a column; of a query all rows are looked at, if its key has
    /// decimals.
    pub async fn refuse_long_decimals(&mut self, source: &Source, key: &[String]) -> Result<(), Trouble> {
        if self.dialect() != Dialect::MySql {
            return Ok(());
        }
        let relation = Relation::new(source, Dialect::MySql)?;
        if relation.table.is_some() {
            return Ok(());
        }
        match self.rounded_column(&relation, key).await.map_err(|trouble| cannot_read(trouble, &relation))? {
            None => Ok(()),
            Some(column) => Err(Trouble::Misconfigured(anyhow!(
                "column {column} of {} cannot be a key: a DECIMAL of a query is compared exactly only up to 35 digits before the \
                 point and 30 behind it; name its --table instead, or another --key",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_is_compared_with_one_that_has_all_its_digits() {
        assert_eq!(exact(35, 30), OF_QUERY);
        for (before, behind, scale) in
            [(9, 0, 30), (20, 2, 30), (35, 30, 30), (36, 29, 29), (38, 0, 27), (65, 0, 0), (2, 38, 38), (27, 38, 38)]
        {
            assert_eq!(exact(before, behind), format!("CAST(? AS DECIMAL(65,{scale}))"));
            assert!(before <= 65 - scale && behind <= scale, "{before} {behind}");
        }
    }
}
