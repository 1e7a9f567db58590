//! The form of the file.

use serde::Deserialize;
use toml::Spanned;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default)]
    pub(crate) name: Vec<Entry>,
}

/// One name and its rules.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) name: Spanned<String>,
    #[serde(default)]
    pub(crate) own: Vec<Spanned<String>>,
    #[serde(default)]
    pub(crate) talk: Vec<Spanned<String>>,
    #[serde(default)]
    pub(crate) see: Vec<Spanned<String>>,
}
