//! Tests of the command `repfuse`: one binary, a module for each subject.
#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

#[path = "../support/mod.rs"]
mod support;

#[cfg(unix)]
mod atomic;
mod borders;
mod broken_torch;
mod cli_json;
mod cli_report;
mod cli_text;
mod computed_weights;
mod documents;
mod exported;
mod facts;
mod families;
mod foreign;
mod graph_files;
mod graph_forms;
mod graph_laws;
mod graph_raised;
mod graph_reasons;
mod graph_shapes;
mod graph_shared;
mod graphs;
mod hints;
mod hostile;
mod hostile_graphs;
mod hostile_others;
mod int8;
mod learned;
mod maps;
mod messages;
mod mismatches;
mod mistakes;
mod mlx;
mod modules;
mod modules_changed;
mod modules_in_code;
mod modules_unread;
mod names;
mod network;
mod notes;
mod numbers;
mod onnx_versions;
mod own_recipe;
mod pt2;
mod pt2_padded;
mod pt2_stored;
mod pytorch;
mod rounding;
mod samples;
mod samples_refused;
mod selection;
mod shards;
#[cfg(unix)]
mod streams;
mod unsound;
mod verdicts;
mod weights_in_parts;
mod written;
