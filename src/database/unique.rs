//! Whether rows have the same key, as far as that is known before they are read.

use std::collections::BTreeMap;

use anyhow::anyhow;

use super::scan::Scan;
use super::statement::Dialect;
use super::trouble::Trouble;
use super::{Connection, Database, ask, cannot_read};

impl Database {
    /// Whether an index of the table keeps rows from having the same key; of a query nobody knows.
    pub async fn has_unique_key(&mut self, scan: &Scan) -> Result<bool, Trouble> {
        let Some(table) = &scan.relation.table else { return Ok(false) };
        let is_of_key = |name: &String| scan.key.iter().any(|column| column.name == *name);
        if self.dialect() == Dialect::Sqlite {
            // The rowid has no index.
            let primary = self.primary_key(table).await?;
            if !primary.is_empty() && primary.iter().all(is_of_key) {
                return Ok(true);
            }
        }
        let mut indexes = BTreeMap::<String, Vec<String>>::new();
        for (index, column) in ask!(self, session => session.unique_columns(table))?? {
            indexes.entry(index).or_default().push(column);
        }
        Ok(indexes.values().any(|columns| columns.iter().all(is_of_key)))
    }

    /// Fails where rows have the same key. The database goes through all of them for that.
    pub async fn refuse_shared_keys(&mut self, scan: &Scan) -> Result<(), Trouble> {
        let are_shared = self.exists(&scan.shared_keys()).await;
        if are_shared.map_err(|trouble| cannot_read(trouble, &scan.relation))? {
            let (label, key) = (scan.label(), scan.key_names());
            return Err(Trouble::Misconfigured(anyhow!(
                "{label} has several rows with the same {key}; name a --key that tells them apart"
            )));
        }
        Ok(())
    }
}
