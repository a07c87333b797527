//! Mistakes in recipes and arguments, word for word, and beside each the same thing without it.
//!
//! The last test reads every message from the sources, and fails for one that no test holds.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::file::{Place, checkpoint, files_below, ones, recipe as own};
use repfuse::recipe;

/// A recipe of one block with something in it.
fn block(more: &str) -> String {
    own(&format!(
        r#"{{"at": "{{p}}.c.weight", "fuse": {{"{{p}}.d": {{"conv": "{{p}}.c", "bias": "optional"}}}}{more}}}"#
    ))
}

/// A recipe that fuses one expression.
fn fused(expression: &str) -> String {
    own(&format!(
        r#"{{"at": "{{p}}.c.weight", "fuse": {{"{{p}}.d": {expression}}}}}"#
    ))
}

/// A recipe with something at the top.
fn top(more: &str) -> String {
    block("").replacen('{', &format!("{{{more}, "), 1)
}

#[test]
fn recipes_with_one_mistake() {
    let c = r#"{"conv": "{p}.c", "bias": "optional"}"#;
    for (text, expected, twin) in [
        // At the top.
        (
            top(r#""cite": 1"#),
            "at `cite`: found a number; expected a string",
            top(r#""cite": "1""#),
        ),
        (
            top(r#""when": "a""#),
            "at `when`: found a string; expected an array of patterns",
            top(r#""when": ["a"]"#),
        ),
        (
            top(r#""when": [[1]]"#),
            "at `when[0][0]`: found a number; expected a string",
            top(r#""when": [["a"]]"#),
        ),
        (
            top(r#""unless": {}"#),
            "at `unless`: found an object; expected an array of patterns",
            top(r#""unless": []"#),
        ),
        (
            top(r#""models": "x""#),
            "at `models`: found a string; expected an array of model names",
            top(r#""drop": ["a"]"#),
        ),
        (
            top(r#""drop": null"#),
            "at `drop`: found null; expected an array of patterns",
            top(r#""drop": ["a"]"#),
        ),
        (
            top(r#""owns": true"#),
            "at `owns`: found a boolean; expected an array of path segments",
            top(r#""owns": ["a"]"#),
        ),
        (
            top(r#""when": ["a"], "modules": "backbone""#),
            "at `modules`: found a string; expected an array of module names",
            top(r#""when": ["a"], "modules": ["backbone", "stage*"]"#),
        ),
        (
            top(r#""modules": ["backbone"]"#),
            "at `modules`: the key `when` is missing; `modules` says in which modules its evidence stands",
            top(r#""when": ["a"], "modules": ["backbone"]"#),
        ),
        (
            top(r#""when": ["a"], "modules": ["a.b"]"#),
            "at `modules`: `a.b` is not the name of one module; expected one segment of a path, such as `backbone`, or its beginning and `*`",
            top(r#""when": ["a"], "modules": ["b"]"#),
        ),
        (
            top(r#""rename": ["a"]"#),
            "at `rename`: found an array; expected an object: old name to new name",
            top(r#""rename": {"a": "b"}"#),
        ),
        (
            top(&format!(r#""drop": [{}"a"]"#, r#""a", "#.repeat(256))),
            "at `drop`: found 257 entries; at most 256 are taken",
            top(&format!(r#""drop": [{}"a"]"#, r#""a", "#.repeat(255))),
        ),
        (
            top(r#""rename": {"a": "{p}.b"}"#),
            "at `rename`: `{p}` is not bound; use a capture of the old name, `a`",
            top(r#""rename": {"{p}.a": "{p}.b"}"#),
        ),
        (
            top(r#""zzzzzzzz": 1"#),
            "unknown key `zzzzzzzz`; expected one of `$schema`, `name`, `about`, `cite`, `models`, `load`, `eps`, `eps_note`, `identity_note`, `factor_note`, `when`, `modules`, `unless`, `owns`, `deploy`, \
             `drop`, `rename`, `beside`, `blocks`, `network`, `host`",
            top(r#""eps_note": "1""#),
        ),
        (
            top(r#""network": {"blocks": ["a{i}"]}"#),
            "at `network`: the key `head` is missing",
            top(r#""network": {"blocks": ["a{i}"], "head": "fc"}"#),
        ),
        (
            top(r#""network": 1"#),
            "at `network`: found a number; expected an object with `blocks` and `head`",
            top(r#""network": {"blocks": [], "head": "fc"}"#),
        ),
        (
            top(r#""network": {"blocks": [], "head": "fc", "squeeze": ["a"]}"#),
            "at `network.squeeze`: found an array; expected the names of two convs",
            top(r#""network": {"blocks": [], "head": "fc", "squeeze": ["a", "b"]}"#),
        ),
        (
            r#"{"name": "own", "about": "", "blocks": {}}"#.to_owned(),
            "at `blocks`: found an object; expected an array of blocks",
            block(""),
        ),
        // In a block.
        (
            own("1"),
            "at `blocks[0]`: found a number; expected an object with `at` and `fuse`",
            block(""),
        ),
        (
            own(r#"{"at": "a"}"#),
            "at `blocks[0]`: the key `fuse` is missing",
            block(""),
        ),
        (
            own(r#"{"at": "a", "fuse": []}"#),
            "at `blocks[0].fuse`: found an array; expected an object: output module to expression",
            block(""),
        ),
        (
            own(r#"{"at": [], "fuse": {"b": "identity"}}"#),
            "at `blocks[0].at`: `at` is empty; a block needs a tensor to start at and an output",
            own(r#"{"at": ["a"], "fuse": {"b": "identity"}}"#),
        ),
        (
            own(r#"{"at": "a", "fuse": {}}"#),
            "at `blocks[0].fuse`: `fuse` is empty; a block needs a tensor to start at and an output",
            own(r#"{"at": "a", "fuse": {"b": "identity"}}"#),
        ),
        (
            block(r#", "where": []"#),
            "at `blocks[0].where`: found an array; expected an object: tensor to shape",
            block(r#", "where": {}"#),
        ),
        (
            block(r#", "where": {"{p}.c.weight": 1}"#),
            "at `blocks[0].where.{p}.c.weight`: found a number; expected a shape such as [\"o\", \"i\", 3, 3], or null for a tensor \
             that must not be there",
            block(r#", "where": {"{p}.c.weight": null}"#),
        ),
        (
            block(r#", "where": {"{p}.c.weight": ["oo"]}"#),
            "at `blocks[0].where.{p}.c.weight[0]`: found a string; expected a number, a letter, \"odd\" or \"_\"",
            block(r#", "where": {"{p}.c.weight": ["o"]}"#),
        ),
        (
            block(r#", "where": {"{p}.c.weight": [null]}"#),
            "at `blocks[0].where.{p}.c.weight[0]`: found null; expected a number, a letter, \"odd\" or \"_\"",
            block(r#", "where": {"{p}.c.weight": ["_"]}"#),
        ),
        (
            block(r#", "set": []"#),
            "at `blocks[0].set`: found an array; expected an object: tensor to number",
            block(r#", "set": {"{p}.e": 1}"#),
        ),
        (
            block(r#", "set": {"{q}": 1}"#),
            "at `blocks[0].set`: `{q}` is not bound; use a capture of `at`, or `each` for one term per value",
            block(r#", "set": {"{p}": 1}"#),
        ),
        (
            block(r#", "set": {"{p}": "1"}"#),
            "at `blocks[0].set.{p}`: found a string; expected a number",
            block(r#", "set": {"{p}": 1}"#),
        ),
        (
            top(r#""drop": [".a"]"#),
            "at `drop[0]`: `.a` begins with a dot, which stands for the module that `at` of a block names; here is none",
            top(r#""drop": ["a"]"#),
        ),
        (
            block(r#", "keep": ["{i-1}"]"#),
            "at `blocks[0].keep[0]`: `{i-1}` counts on from `{i}`, which only a name that is written does: an output of `fuse`, or a \
             new name in `rename`",
            block(r#", "keep": ["{p}"]"#),
        ),
        (
            own(
                r#"{"at": "{p}.{s:a|b}.weight", "fuse": {"{p}.{s-1}": {"conv": {"weight": "{p}.{s}.weight"}}}}"#,
            ),
            "at `blocks[0].fuse`: `{p}.{s-1}` counts on from `{s}`, which is no number; let `at` capture digits, as `{i}` does",
            own(
                r#"{"at": "{p}.{s}.weight", "fuse": {"{p}.{s-1}": {"conv": {"weight": "{p}.{s}.weight"}}}}"#,
            ),
        ),
        (
            block(r#", "classes": []"#),
            "at `blocks[0].classes`: found an array; expected an object: module to the names of classes",
            block(r#", "classes": {}"#),
        ),
        (
            block(r#", "classes": {"{p}": "a.B"}"#),
            "at `blocks[0].classes.{p}`: found a string; expected an array of class names",
            block(r#", "classes": {"{p}": ["a.B"]}"#),
        ),
        // In an expression.
        (
            fused("1"),
            "at `blocks[0].fuse.{p}.d`: found a number; expected an expression: \"identity\", an array, or an object such as {\"conv\": …}",
            fused(c),
        ),
        (
            fused(r#""identitty""#),
            "at `blocks[0].fuse.{p}.d`: unknown expression `identitty`; the only one without an object is \"identity\"",
            fused(r#""identity""#),
        ),
        (
            fused(r#"{"seq": 1}"#),
            "at `blocks[0].fuse.{p}.d.seq`: found a number; expected an array of expressions",
            fused(&format!(r#"{{"seq": [{c}]}}"#)),
        ),
        (
            fused(r#"{"conv": {"weigth": "a"}}"#),
            "at `blocks[0].fuse.{p}.d.conv`: unknown key `weigth`; did you mean `weight`?",
            fused(r#"{"conv": {"weight": "a"}}"#),
        ),
        (
            fused(r#"{"conv": 1}"#),
            "at `blocks[0].fuse.{p}.d.conv`: found a number; expected a module, or an object with `weight` and `bias`",
            fused(c),
        ),
        (
            fused(r#"{"conv": "{p}.c", "bias": "optional", "eps": 1}"#),
            "at `blocks[0].fuse.{p}.d`: unknown key `eps`; expected one of `conv`, `bias`, `dilation`, `groups`, `transposed`, \
             `flipped`, `axes`",
            fused(r#"{"conv": "{p}.c", "bias": "optional", "groups": 1}"#),
        ),
        (
            fused(r#"{"conv": "{p}.c", "bias": 1}"#),
            "at `blocks[0].fuse.{p}.d.bias`: found a number; expected true, false or \"optional\"",
            fused(r#"{"conv": "{p}.c", "bias": false}"#),
        ),
        (
            fused(r#"{"conv": "{p}.c", "bias": "optional", "transposed": 1}"#),
            "at `blocks[0].fuse.{p}.d.transposed`: found a number; expected true or false",
            fused(r#"{"conv": "{p}.c", "bias": "optional", "transposed": true}"#),
        ),
        (
            fused(r#"{"optional": {"seq": ["identity", {"scale": 0.5}]}}"#),
            "at `blocks[0].fuse.{p}.d`: nothing in a file tells whether it is there, for it has no tensor; only a bare identity can be \
             optional without one",
            fused(r#"{"optional": {"seq": ["identity", {"scale": "{p}.s"}]}}"#),
        ),
        (
            fused(r#"{"conv": {"weight": "{p}.c"}, "bias": true}"#),
            "at `blocks[0].fuse.{p}.d.bias`: the bias is named beside the weight; only a module says whether it must have one",
            fused(r#"{"conv": {"weight": "{p}.c", "bias": "{p}.b"}}"#),
        ),
        (
            fused(r#"{"conv": "{p}.c", "bias": "optional", "axes": "hwo"}"#),
            "at `blocks[0].fuse.{p}.d.axes`: found `hwo`; expected letters of \"oihw\" in this order, and no `i` without an `o`",
            fused(r#"{"conv": "{p}.c", "bias": "optional", "axes": "ohw"}"#),
        ),
        (
            fused(r#"{"conv": "{p}.c", "bias": "optional", "transposed": true, "flipped": true}"#),
            "at `blocks[0].fuse.{p}.d`: a transposed conv has `[in, out/groups, kh, kw]` and no `dilation`, is not `flipped`, and has no \
             other `axes`",
            fused(r#"{"conv": "{p}.c", "bias": "optional", "transposed": true, "flipped": false}"#),
        ),
        (
            fused(r#"{"bn": "{p}.n", "eps": "1e-5"}"#),
            "at `blocks[0].fuse.{p}.d.eps`: found a string; expected a number",
            fused(r#"{"bn": "{p}.n", "eps": 1e-5}"#),
        ),
        (
            fused(r#"{"scale": {"row": 1}}"#),
            "at `blocks[0].fuse.{p}.d.scale`: the key `tensor` is missing",
            fused(r#"{"scale": {"tensor": "a", "row": 1}}"#),
        ),
        (
            fused(r#"{"scale": {"tensor": "a", "row": -1}}"#),
            "at `blocks[0].fuse.{p}.d.scale.row`: found a number; expected the number of a row, from 0",
            fused(r#"{"scale": {"tensor": "a", "row": 0}}"#),
        ),
        (
            fused(
                r#"{"each": {"sum": [{"conv": "a.{i}", "bias": "optional"}, {"conv": "a.{j}", "bias": "optional"}]}}"#,
            ),
            "at `blocks[0].fuse.{p}.d`: no tensor in `each` has all of `{i}`, `{j}` in its name",
            fused(
                r#"{"each": {"sum": [{"conv": "a.{i}.{j}", "bias": "optional"}, {"conv": "a.{j}", "bias": "optional"}]}}"#,
            ),
        ),
    ] {
        let error = recipe::parse(&text, "own.json").expect_err(expected);
        let begin = if expected.starts_with("at ") {
            ", "
        } else {
            ": "
        };
        assert_eq!(
            error.to_string(),
            format!("recipe `own.json`{begin}{expected}")
        );
        if let Err(error) = recipe::parse(&twin, "own.json") {
            panic!("beside {expected:?}: {error}");
        }
    }
}

#[test]
fn arguments_with_one_mistake() {
    let place = Place::new();
    checkpoint(1, 4).write(&place.path("in.safetensors"));
    ones(&[("stage0.0", &[1, 4, 5, 5])]).write(&place.path("maps.safetensors"));
    for (argument, value, expected, twin) in [
        (
            "--tolerance <RATIO>",
            "0",
            "expected a positive number; 1 is the rounding bound itself",
            "2",
        ),
        (
            "--tolerance <RATIO>",
            "nan",
            "expected a positive number; 1 is the rounding bound itself",
            "0.9",
        ),
        (
            "--bn-eps <E>",
            "1e-5x",
            "expected a small positive number such as 1e-5",
            "1e-5",
        ),
        (
            "--bn-eps <E>",
            "-1",
            "expected a small positive number such as 1e-5",
            "1e-5",
        ),
        (
            "--stride <N>",
            "0",
            "expected a number from 1 to 512, or two as in 2,1",
            "2,1",
        ),
        (
            "--padding <N>",
            "513",
            "expected `same`, `valid`, a number up to 512, or two as in 1,0",
            "1,0",
        ),
        (
            "--dropout <P>",
            "1",
            "expected a probability from 0 up to, but not including, 1",
            "0.5",
        ),
        ("--probes <N>", "0", "expected a number from 1 to 1024", "1"),
        ("--seed <N>", "-1", "invalid digit found in string", "1"),
    ] {
        let flag = argument.split(' ').next().expect("a flag");
        let ran = place.run(&format!("verify in.safetensors --quiet {flag}={value}"));
        let expected = format!(
            "error: invalid value '{value}' for '{argument}': {expected}\n\nFor more information, try '--help'.\n"
        );
        assert_eq!(ran.all(), (Some(2), "", &*expected));
        // As a word of its own, a number below 0 is a value and no flag.
        let apart = place.run(&format!("verify in.safetensors --quiet {flag} {value}"));
        assert_eq!(apart.all(), (Some(2), "", &*expected));
        // Some say something only beside another.
        let beside = match flag {
            "--stride" | "--padding" => "--input maps.safetensors",
            _ => "",
        };
        let with = |value| place.run(&format!("verify in.safetensors -q {beside} {flag}={value}"));
        if flag == "--dropout" {
            let alone = "error: the following required arguments were not provided:\n  --end-to-end\n\n\
                Usage: repfuse verify --end-to-end --quiet <IN> [DEPLOY]\n\nFor more information, try '--help'.\n";
            assert_eq!(with(twin).all(), (Some(2), "", alone));
        } else {
            assert_eq!(with(twin).all(), (Some(0), "", ""), "{flag}");
        }
    }
}

#[test]
fn files_the_wrong_way_round() {
    let place = Place::new();
    checkpoint(1, 4).write(&place.path("in.safetensors"));
    let fine = |line: &str| assert_eq!(place.run(line).all(), (Some(0), "", ""), "{line}");
    fine("fuse in.safetensors out.safetensors --quiet");
    for command in ["verify", "report -o page.html"] {
        fine(&format!("{command} in.safetensors out.safetensors --quiet"));
        let ran = place.run(&format!("{command} out.safetensors in.safetensors --quiet"));
        let expected = "repfuse: the files are the wrong way round; the training form comes first, then its deploy form\n";
        assert_eq!(ran.all(), (Some(2), "", expected));
        // Two deploy forms are not.
        let ran = place.run(&format!(
            "{command} out.safetensors out.safetensors --quiet"
        ));
        let expected = "repfuse: nothing to fuse: the file is already in deploy form, for `stage0.0.rbr_reparam.weight` is in it\n";
        assert_eq!(ran.all(), (Some(1), "", expected));
    }
}

// All of them

/// The string literals of a source without comments, line continuations and escaped quotes resolved.
fn literals(code: &str) -> Vec<String> {
    let code: String = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| line.to_owned() + "\n")
        .collect();
    let (mut all, mut current, mut chars) = (Vec::new(), None::<String>, code.chars().peekable());
    while let Some(c) = chars.next() {
        match (&mut current, c) {
            // A quote as a character is none of a string.
            (None, '\'') if chars.peek() == Some(&'"') => {
                chars.next();
            }
            (None, '"') => current = Some(String::new()),
            (None, _) => {}
            (Some(_), '"') => all.extend(current.take()),
            (Some(text), '\\') => match chars.next() {
                Some('\n') => {
                    while chars.peek().is_some_and(|c| c.is_whitespace()) {
                        chars.next();
                    }
                }
                Some('n') => text.push('\n'),
                Some(other) => text.push(other),
                None => {}
            },
            (Some(text), other) => text.push(other),
        }
    }
    all
}

/// The longest part of a format string between its placeholders.
fn fixed_part(format: &str) -> String {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' | '}' if depth == 0 && chars.peek() == Some(&c) => {
                chars.next();
                parts.last_mut().expect("a part").push(c);
            }
            '{' => {
                depth += 1;
                parts.push(String::new());
            }
            '}' => depth -= 1,
            c if depth == 0 => parts.last_mut().expect("a part").push(c),
            _ => {}
        }
    }
    parts
        .into_iter()
        .max_by_key(String::len)
        .unwrap_or_default()
}

/// No message of the rooms that make errors goes without a test that has its words.
#[test]
fn every_message_is_held_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let [sources, tests] = ["src", "tests"].map(|part| files_below(&root.join(part), "rs"));
    let read = |path: &PathBuf| fs::read_to_string(path).expect("a source");
    let mut words: String = tests.iter().map(read).collect();
    let (mut looked_at, mut missing) = (0, Vec::new());
    let mut messages = Vec::new();
    for path in &sources {
        let text = read(path);
        // Unit tests hold messages, too.
        let (code, unit) = text.split_once("#[cfg(test)]").unwrap_or((&text, ""));
        words += unit;
        let path = path.strip_prefix(root).expect("below");
        // Still to come: tests of the messages of these rooms.
        if UNHELD.iter().any(|room| path.starts_with(room)) {
            continue;
        }
        // What `cli` and the page print besides errors are no messages.
        if path.starts_with("src/cli") || path.starts_with("src/report") {
            continue;
        }
        messages.extend(
            literals(code)
                .into_iter()
                .map(|literal| (path.to_owned(), literal)),
        );
    }
    let words: String = literals(&words).join("\n");
    let unquoted = words.replace("{{", "{").replace("}}", "}");
    for (path, message) in messages {
        let fixed = fixed_part(&message);
        // Shorter ones are names, keys and parts of others.
        if fixed.len() < 14
            || !fixed.trim().contains(' ')
            || NOT_SHOWN.iter().any(|text| message.starts_with(text))
        {
            continue;
        }
        looked_at += 1;
        if !words.contains(&fixed) && !unquoted.contains(&fixed) {
            missing.push(format!("{}: {message}", path.display()));
        }
    }
    assert!(missing.is_empty(), "no test holds\n{}", missing.join("\n"));
    assert!(looked_at > 100, "{looked_at}");
}

/// Rooms whose messages no test holds yet.
const UNHELD: &[&str] = &[
    "src/graph/learn/mod.rs",
    "src/graph/numbers.rs",
    "src/network/sample/choose.rs",
];

/// Literals of the library that no user meets: notes to its readers, and what cannot happen.
const NOT_SHOWN: &[&str] = &[
    "the messages say what the fields are",
    // As many as there are outputs.
    "a bound for each output",
    // What the reader of a graph has looked at before, and mistakes of the runtime.
    "it has several inputs",
    "its matrix {} is stored in strides",
    "it is not folded",
    "its weight is none of a conv",
    "its channels overflow",
    "it has more outputs than parts",
    "how many channels it cuts is not known",
    "it takes no channels",
    "how many channels its inputs have is not known",
    "it has no inputs",
    "nothing in it is a conv",
    "it does not come from its source",
    "it reads nothing",
    "it has more than three spatial axes",
    "the runtime stopped unexpectedly",
    "its size overflows",
    "the graph of {} contradicts itself",
    "an input or an output has no name",
    "U8 has a size, and the shape is the number of bytes",
    "a new array is in standard layout",
    "the array was put in standard layout",
    "as many numbers as rows and columns",
    "53 bits are what an f64 holds exactly",
    "no batch has 2⁵³ samples",
    "an archive is never empty",
    "U8 has a size, and the shape is the number of bytes",
    "a name and a text, many times",
    // Of a map of 2⁵⁷ numbers.
    "unrolled input",
    // Of a file that another program cuts while it is read.
    "it has become shorter",
    // On a machine of 64 bits every number of a shape fits, and the product was looked at before.
    "has a shape that is too large to address",
    // Classes, as a pickle names them.
    "collections OrderedDict",
    "torch.storage UntypedStorage",
    // Of a file that is neither a file nor any other kind that Unix has.
    "something else",
    // There are built-in recipes to try.
    "no recipe makes a plan of the file",
    // The path of a block is cut to what it shares with its output, and a graph has plain convs only.
    "its output {} is outside of it",
    "{} is no plain conv",
    // The reader of a program knows each type, description and operator that is written, and its transposed convs cut evenly.
    "two parts of one answer, taken apart at once",
    "{dtype} is no type of PyTorch",
    "{} is no description",
    "a transposed conv cuts the same on both sides",
    "it has no operator",
    "nothing computes it",
    // Asked of an object only.
    "an object with `tensor`",
];
