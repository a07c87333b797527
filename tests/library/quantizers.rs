//! The state of a quantizer beside any conv that is folded is refused by name, whatever the recipe, and dropped by the globs
//! that the error gives.

use std::collections::BTreeSet;

use crate::support::fixtures::{Case, cases};
use crate::support::header::Header;
use repfuse::plan::{Options, Plan, plan_families};
use repfuse::recipe::{self, Error, Family, Recipe};
use repfuse::tensor::Checkpoint;

/// What quantizers leave beside a conv, and the glob that takes it out.
const STATE: [(&str, &str); 3] = [
    ("_amax", "*._amax"),
    ("weight_fake_quant.scale", "*.weight_fake_quant"),
    (
        "activation_post_process.min_val",
        "*.activation_post_process",
    ),
];

fn planned(
    file: &Checkpoint,
    case: &Case,
    recipes: &[Recipe],
    drop: &[String],
) -> Result<Plan, Error> {
    let families = match case.detect {
        true => recipe::detect(file.tensors(), recipes)?,
        false => {
            let named = recipes.iter().find(|r| r.name == case.recipe);
            vec![Family::whole(named.expect("a recipe of this name"))]
        }
    };
    let options = Options {
        drop: drop.to_vec(),
        ..Options::default()
    };
    plan_families(file.tensors(), &families, &options)
}

#[test]
fn the_state_of_a_quantizer_beside_any_folded_conv_is_refused_by_name() {
    let recipes = recipe::builtin().expect("the built-in recipes");
    let mut tried = BTreeSet::new();
    for case in cases() {
        let file = Checkpoint::open(&case.train).expect("a checkpoint");
        let plan = planned(&file, &case, &recipes, &[]).expect("a plan");
        let names = |plan: &Plan| -> Vec<String> {
            plan.outputs()
                .iter()
                .map(|p| p.output.name.clone())
                .collect()
        };
        let convs: BTreeSet<String> = plan
            .blocks()
            .iter()
            .flat_map(|block| block.consumed())
            .filter(|tensor| tensor.shape().len() > 1)
            .filter_map(|tensor| tensor.name().strip_suffix(".weight"))
            .map(str::to_owned)
            .collect();
        // The first, the last and one between them tell enough of a file.
        let some = [0, convs.len() / 2, convs.len().saturating_sub(1)];
        let some = some.into_iter().filter_map(|i| convs.iter().nth(i));
        for conv in some.collect::<BTreeSet<_>>() {
            for (state, glob) in STATE {
                let mut header = Header::of(&file);
                header.add(&format!("{conv}.{state}"), &[1]);
                let changed = header.open();
                let refused = planned(&changed, &case, &recipes, &[]);
                let Err(Error::Parts { module, globs, .. }) = refused else {
                    panic!(
                        "{}: {conv}.{state}: {:?}",
                        case.name,
                        refused.map(|_| "passed")
                    );
                };
                assert_eq!(
                    (&module, globs),
                    (conv, vec![glob.to_owned()]),
                    "{}",
                    case.name
                );
                let without = planned(&changed, &case, &recipes, &[glob.to_owned()]);
                let without = without.unwrap_or_else(|e| panic!("{}: {e}", case.name));
                assert_eq!(names(&without), names(&plan), "{}", case.name);
                tried.insert(case.recipe.clone());
            }
        }
    }
    assert!(tried.len() > 80, "{}", tried.len());
}
