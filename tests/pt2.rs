//! Programs of torch.export: read as graphs, fused, and written so that PyTorch loads them.

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use repfuse::graph::pt2::{Edit, Pt2, edit, fuse};
use repfuse::plan::Options;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/pt2/{name}.pt2"))
}

fn open(name: &str) -> Pt2 {
    Pt2::open(fixture(name)).unwrap_or_else(|e| panic!("{name}: {e:?}"))
}

fn planned(pt2: &Pt2) -> Edit {
    edit(pt2, &Options::default(), false)
        .unwrap_or_else(|e| panic!("{}: {e}", pt2.path().display()))
}

/// Writes the fused program and opens it.
fn fused(pt2: &Pt2, edit: &Edit, directory: &Path) -> Pt2 {
    let to = directory.join("out.pt2");
    let written = fuse(pt2, edit, &to, &repfuse::fuse::Options::default(), &|_| {
        ControlFlow::Continue(())
    });
    written.unwrap().finish().unwrap();
    Pt2::open(&to).unwrap()
}

/// Each operator of a graph, in a word.
fn operators(pt2: &Pt2) -> Vec<String> {
    let word = |node: &repfuse::graph::Node| {
        let shown = format!("{:?}", node.op);
        let end = shown
            .find(|c: char| !c.is_alphanumeric())
            .unwrap_or(shown.len());
        shown[..end].to_owned()
    };
    pt2.graph().nodes().iter().map(word).collect()
}

#[test]
fn every_program_is_read_and_fused() {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture("x").parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.extension().unwrap() != "pt2" || name == "training" {
            continue;
        }
        let pt2 = open(&name);
        println!("{name}: {}", operators(&pt2).join(" "));
        match edit(&pt2, &Options::default(), false) {
            Ok(edit) => {
                for (region, block) in edit.regions.folded.iter().zip(&edit.plan.blocks) {
                    println!(
                        "   {} {:?} {:?}",
                        block.name,
                        region.walk,
                        block.fused[0].geometry()
                    );
                }
                for (node, why) in &edit.regions.left {
                    println!("   left {}: {why}", pt2.graph().node(*node).name);
                }
                let out = fused(&pt2, &edit, directory.path());
                println!("   -> {}", operators(&out).join(" "));
                fs::rename(
                    directory.path().join("out.pt2"),
                    std::env::temp_dir()
                        .join("pt2")
                        .join(format!("{name}.out.pt2")),
                )
                .unwrap();
            }
            Err(e) => println!("   {e}"),
        }
    }
}
