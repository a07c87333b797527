//! The report: what the page is made of, and that names from a file stay text.

use crate::support::file::{Place, checkpoint, end, start};
use crate::support::forge::File;
use crate::support::tiny::Tiny;
use serde_json::{Value, json};

/// One channel, so that every tap can be added up by hand: ones, a two in the middle, and a bare identity.
fn by_hand() -> Tiny {
    let mut tiny = Tiny::empty();
    tiny.put(
        "b.conv_2d.weight",
        &[1, 1, 3, 3],
        &[1., -1., 1., 1., 1., 1., 1., 1., -4.],
    );
    tiny.put("b.conv_2d.bias", &[1], &[0.5]);
    tiny.put("b.conv_2d_pointwise.weight", &[1, 1, 1, 1], &[2.0]);
    tiny.put("b.conv_2d_pointwise.bias", &[1], &[0.25]);
    tiny.write();
    tiny
}

#[test]
fn a_branch_and_the_fused_kernel_are_seen_tap_by_tap() {
    let tiny = by_hand();
    let report: Value =
        serde_json::from_str(&tiny.prints(&["report", "train.safetensors", "--json"]))
            .expect("JSON");
    let conv = &report["blocks"][0]["convs"][0];
    let kernel = |label: &str, extent: usize, taps: [f64; 9]| json!({"label": label, "extent": [extent, extent], "taps": taps});
    assert_eq!(
        conv["branches"],
        json!([
            kernel("3×3+b", 3, [1., 1., 1., 1., 1., 1., 1., 1., 4.]),
            kernel("1×1+b", 1, [0., 0., 0., 0., 2., 0., 0., 0., 0.]),
            kernel("x", 1, [0., 0., 0., 0., 1., 0., 0., 0., 0.]),
        ])
    );
    assert_eq!(
        conv["fused"],
        kernel("3×3", 3, [1., 1., 1., 1., 4., 1., 1., 1., 4.])
    );
}

/// Distances in the page are pixels: the frame of a 3×3 kernel, and one square in its middle for 1×1.
#[test]
fn the_page_draws_what_the_numbers_say() {
    let tiny = by_hand();
    assert_eq!(
        tiny.prints(&["report", "train.safetensors", "-o", "page.html"])
            .split(',')
            .next(),
        Some("page.html: 1 block")
    );
    let page = std::fs::read_to_string(tiny.path("page.html")).expect("a page");
    let map = |label: &str, most: &str, paths: &str| {
        format!(
            "<svg class=\"heat\" viewBox=\"0 0 101 101\" width=\"101\" height=\"101\" role=\"img\" \
             aria-label=\"{label}: mean |w| up to {most}\">{paths}</svg>"
        )
    };
    let middle = |shade: usize| format!("<path class=\"q{shade}\" d=\"M34 34h33v33h-33z\"/>");
    // √(2/4) and √(1/4) of twelve shades.
    assert!(page.contains(&map("1×1+b", "2.00", &middle(9))), "{page}");
    assert!(
        page.contains(&map("identity", "1.00", &middle(6))),
        "{page}"
    );
    assert!(page.contains("<span>3×3+b</span>"));
    assert!(page.contains("<span class=\"shape\">1×1×3×3 f32</span>"));
    assert!(page.contains("a bare identity assumed"));
}

#[test]
fn the_page_needs_no_network() {
    let tiny = Tiny::network();
    tiny.prints(&["report", "train.safetensors", "-o", "page.html"]);
    let page = std::fs::read_to_string(tiny.path("page.html")).expect("a page");
    // A namespace is a name, not an address that is fetched.
    let page = page.replace("http://www.w3.org/2000/svg", "");
    // A link to a block stays on the page.
    let page = page.replace(" href=\"#block-", "");
    for address in [
        "http:", "https:", "//", " src=", " href=", "url(", "@import", "<script", "<link",
    ] {
        assert!(!page.contains(address), "the page has `{address}`");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    assert!(page.contains("width=device-width"));
    // All pass, so a sentence is enough.
    assert!(page.contains("all 5 convs pass"));
    assert!(!page.contains("<figure class=\"chart\">"));
}

/// Multiply-adds of a network that is not known are not guessed.
#[test]
fn strides_are_not_made_up() {
    let tiny = by_hand();
    let report: Value =
        serde_json::from_str(&tiny.prints(&["report", "train.safetensors", "--json"]))
            .expect("JSON");
    assert_eq!(report["macs"], json!({"input_size": 224, "total": null}));
    tiny.prints(&["report", "train.safetensors", "-o", "page.html", "--quiet"]);
    let page = std::fs::read_to_string(tiny.path("page.html")).expect("a page");
    assert!(page.contains("neither the file nor the recipe says which strides this network has"));
    assert!(!page.contains("multiply-adds at 224×224"));
}

#[test]
fn names_are_text_and_never_markup() {
    let mut tiny = Tiny::empty();
    tiny.block("<b>\"'&\u{202e}", [4, 4]);
    tiny.write();
    tiny.prints(&["report", "train.safetensors", "-o", "page.html", "--quiet"]);
    let page = std::fs::read_to_string(tiny.path("page.html")).expect("a page");
    assert!(!page.contains("<b>\""), "a name has become markup");
    assert!(!page.contains('\u{202e}'), "a name turns the text around");
    assert!(
        page.contains("&#60;b&#62;&#34;&#39;&#38;\\u{202e}"),
        "{page}"
    );
}

#[test]
fn what_does_not_fit_is_shown_as_failing() {
    let tiny = Tiny::network();
    tiny.prints(&["fuse", "train.safetensors", "deploy.safetensors", "--quiet"]);
    let mut deployed = File::read(&tiny.path("deploy.safetensors"));
    deployed
        .at("stage1.1.rbr_reparam.weight")
        .edit(|w| w[0] += 1.0);
    deployed.tensors.remove("stage2.0.rbr_reparam.bias");
    deployed.write(&tiny.path("wrong.safetensors"));
    let ran = tiny.run(&[
        "report",
        "train.safetensors",
        "wrong.safetensors",
        "-o",
        "page.html",
    ]);
    assert_eq!((ran.status, ran.stderr.as_str()), (1, ""));
    let page = std::fs::read_to_string(tiny.path("page.html")).expect("a page");
    assert!(page.contains(
        "<b>Not equivalent</b> — 2 of 5 convs fail; for one or more no error can be given"
    ));
    assert!(page.contains(
        "<li><a href=\"#block-4\">stage2.0</a>: `stage2.0.rbr_reparam.bias` is missing</li>"
    ));
    // What fails stands first, and links lead to it.
    let at = |id: usize| {
        page.find(&format!("<article id=\"block-{id}\">"))
            .expect("a block")
    };
    assert!(at(2) < at(4) && at(4) < at(0), "failed blocks first");
    assert!(page.contains("`stage1.1.rbr_reparam.weight[0,0,0,0]` is "));
    assert!(page.contains("Bars higher than the chart are cut."));
    assert_eq!(page.matches("<rect class=\"fails\"").count(), 2 * 2);
    assert_eq!(page.matches("<rect class=\"passes\"").count(), 2 * 3);
    assert_eq!(
        page.matches("<div class=\"tile fused\">").count(),
        4,
        "all but the missing one"
    );
}

/// `-o` with the name of the weights must not cost anyone their weights.
#[test]
fn only_a_report_is_replaced() {
    let tiny = Tiny::network();
    let before = std::fs::read(tiny.path("train.safetensors")).expect("a file");
    let ran = tiny.run(&["report", "train.safetensors", "-o", "train.safetensors"]);
    assert_eq!(ran.status, 2);
    assert_eq!(
        ran.stderr,
        "repfuse: `train.safetensors` exists and is no report; choose another name or pass --force to replace it\n"
    );
    assert_eq!(
        std::fs::read(tiny.path("train.safetensors")).expect("a file"),
        before
    );
    for _ in 0..2 {
        tiny.prints(&["report", "train.safetensors", "-o", "page.html"]);
    }
    std::fs::write(tiny.path("page.html"), "mine").expect("a file");
    assert_eq!(
        tiny.run(&["report", "train.safetensors", "-o", "page.html"])
            .status,
        2
    );
    tiny.prints(&["report", "train.safetensors", "-o", "page.html", "--force"]);
    // Not even with that.
    let ran = tiny.run(&[
        "report",
        "train.safetensors",
        "-o",
        "train.safetensors",
        "--force",
    ]);
    assert_eq!(
        (ran.status, &*ran.stderr),
        (
            2,
            "repfuse: `train.safetensors` is what the report is on; choose another name\n"
        )
    );
    assert_eq!(
        std::fs::read(tiny.path("train.safetensors")).expect("a file"),
        before
    );
}

/// A page is written whole or not at all, as a checkpoint is.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_page_before() {
    let place = Place::new();
    checkpoint(2, 4).write(&place.path("in.safetensors"));
    let report = |limit: &str| {
        let line =
            format!("ulimit -f {limit}; exec \"$REPFUSE\" report in.safetensors -o page.html");
        end(start(place.shell(&line)))
    };
    assert_eq!(report("100000").code(), Some(0));
    let before = place.read("page.html");
    let full = report("4");
    let expected = "repfuse: cannot write `page.html`: File too large (os error 27)\n";
    assert_eq!(full.all(), (Some(2), "", expected));
    assert_eq!(place.read("page.html"), before);
    assert_eq!(place.names(), ["in.safetensors", "page.html"]);
}

#[test]
fn a_page_or_json_is_asked_for() {
    let ran = Tiny::network().run(&["report", "train.safetensors"]);
    assert_eq!(ran.status, 2);
    assert!(
        ran.stderr.starts_with(
            "error: the following required arguments were not provided:\n  --output <PAGE>\n"
        ),
        "{}",
        ran.stderr
    );
}

/// Hundreds of blocks and kernels of 31×31 stay a page that a phone can hold.
#[test]
fn large_networks_and_large_kernels_stay_small_pages() {
    let mut tiny = Tiny::empty();
    for i in 0..240 {
        tiny.block(&format!("stage1.{i}"), [2, 2]);
    }
    tiny.write();
    tiny.prints(&["report", "train.safetensors", "-o", "page.html", "--quiet"]);
    let page = std::fs::read_to_string(tiny.path("page.html")).expect("a page");
    assert_eq!(page.matches("<article ").count(), 240);
    assert!(page.len() < 600_000, "{} bytes", page.len());
    let at = |name: &str| page.find(&format!(">{name}<")).expect(name);
    assert!(
        at("stage1.2") < at("stage1.10"),
        "blocks stand in the order people count"
    );

    let mut tiny = Tiny::empty();
    tiny.tensor("b.conv_2d.weight", &[3, 3, 31, 31], -1.0, 1.0);
    tiny.tensor("b.conv_2d.bias", &[3], -1.0, 1.0);
    tiny.tensor("b.conv_2d_pointwise.weight", &[3, 3, 1, 1], -1.0, 1.0);
    tiny.tensor("b.conv_2d_pointwise.bias", &[3], -1.0, 1.0);
    tiny.write();
    tiny.prints(&["report", "train.safetensors", "-o", "page.html", "--quiet"]);
    let page = std::fs::read_to_string(tiny.path("page.html")).expect("a page");
    assert!(page.contains("viewBox=\"0 0 124 124\""));
    // Noise is the worst case: no two neighbours have one shade.
    assert!(page.len() < 60_000, "{} bytes", page.len());
}

/// Every family: kernels are linear, so no tap of the fused kernel is larger than those of its branches together, and the
/// kernel that the authors' own code wrote looks like the one that is folded here.
#[test]
fn in_every_family_the_branches_make_up_the_fused_kernel() {
    use repfuse::plan;
    use repfuse::summary::kernels::{Kernel, kernel_maps};
    use repfuse::verify::Deployed;
    use repfuse::{recipe, tensor::Checkpoint};

    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let recipes = recipe::builtin().expect("recipes");
    let mut seen = 0;
    for recipe in &recipes {
        let Ok(files) = std::fs::read_dir(root.join(&recipe.name)) else {
            continue;
        };
        for path in files.map(|file| file.expect("an entry").path()) {
            let text = path.to_str().expect("text");
            let Some(case) = text.strip_suffix(".train.safetensors") else {
                continue;
            };
            let train = Checkpoint::open(&path).expect("a checkpoint");
            let deploy = Checkpoint::open(format!("{case}.deploy.safetensors")).expect("a pair");
            let Ok(plan) = plan::plan(train.tensors(), recipe, &plan::Options::default()) else {
                continue;
            };
            for fused in plan.blocks().iter().flat_map(|block| block.fused()) {
                let maps = kernel_maps(&train, fused, Deployed::InMemory).expect("maps");
                let taps = |kernel: Option<Kernel>| kernel.expect("a kernel").taps;
                let whole = taps(maps.fused);
                for (i, tap) in whole.iter().enumerate() {
                    let parts: f64 = maps.branches.iter().map(|b| b.taps[i]).sum();
                    assert!(
                        *tap <= parts * (1.0 + 1e-12),
                        "{case} {}: tap {i}",
                        fused.module()
                    );
                    if let [only] = &maps.branches[..] {
                        assert_eq!(*tap, only.taps[i], "{case} {}: tap {i}", fused.module());
                    }
                }
                let largest = whole.iter().copied().fold(0.0, f64::max);
                let theirs = kernel_maps(&train, fused, Deployed::File(&deploy)).expect("maps");
                for (ours, theirs) in whole.iter().zip(taps(theirs.fused)) {
                    // Half precision is the coarsest that a fixture is stored in.
                    assert!(
                        (ours - theirs).abs() <= 1e-2 * largest,
                        "{case} {}",
                        fused.module()
                    );
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 300, "{seen}");
}
