//! Every link between the documents leads to a file that is there, and to a heading that is in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::readme::{PROJECT, document, headings};

/// What a heading is found by, as GitHub makes it.
fn anchor(title: &str) -> String {
    let is_kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    title.to_lowercase().chars().filter(is_kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Where the links of a document lead: `[text](there)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// README.md, those of docs/, and that of scripts/.
fn documents() -> Vec<String> {
    let docs = fs::read_dir(Path::new(PROJECT).join("docs")).unwrap();
    let docs = docs.map(|entry| format!("docs/{}", entry.unwrap().file_name().display()));
    ["README.md", "scripts/README.md"].map(str::to_owned).into_iter().chain(docs).collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_are_there() {
    let (mut broken, mut count) = (vec![], 0);
    for name in documents() {
        let (text, folder) = (document(&name), Path::new(&name).parent().unwrap());
        for link in links(&text).filter(|link| !link.contains("://")) {
            count += 1;
            let (file, wanted) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { name.clone() } else { folder.join(file).display().to_string() };
            let is_there = Path::new(PROJECT).join(&target).exists();
            if !is_there || !(wanted.is_empty() || has_heading(&target, wanted)) {
                broken.push(format!("{name}: {link}"));
            }
        }
    }
    assert!(broken.is_empty() && count > 50, "{count} links, of which lead nowhere: {broken:#?}");
}

fn has_heading(target: &str, wanted: &str) -> bool {
    headings(&document(target)).iter().any(|(.., title)| anchor(title) == wanted)
}

#[test]
fn no_document_has_two_headings_that_a_link_could_not_tell_apart() {
    for name in documents() {
        let text = document(&name);
        let anchors: Vec<_> = headings(&text).iter().map(|(.., title)| anchor(title)).collect();
        assert_eq!(anchors.iter().collect::<BTreeSet<_>>().len(), anchors.len(), "{name}: {anchors:?}");
    }
}
