//! A model's name leads to its recipe, and every recipe says how its output is loaded.

use repfuse::recipe::{builtin, for_model};

#[test]
fn a_name_leads_to_the_recipes_of_its_family() {
    let recipes = builtin().expect("built-in recipes");
    for (name, expected) in [
        ("timm/mobileone_s1.apple_in1k", "timm-mobileone"),
        ("RepVGG-B1g4", "repvgg"),
        ("yolov8n.pt", "ultralytics"),
        ("yolov8n-seg", "ultralytics"),
        ("yolo11m-cls.pt", "ultralytics-cls"),
        ("D-FINE", "dfine"),
        ("tiny_vit_21m_224", "timm-tinyvit"),
        ("YOLO-NAS-S-Pose", "yolo-nas-pose"),
        ("scale factor", "rtmosr"),
    ] {
        let found: Vec<&str> = for_model(&recipes, name)
            .iter()
            .map(|recipe| recipe.name.as_str())
            .collect();
        let is_there = found.contains(&expected);
        assert_eq!(is_there, name != "scale factor", "{name}: {found:?}");
    }
    // A more exact entry goes before a shorter one.
    let exact = for_model(&recipes, "yolov8n-cls");
    assert!(exact.iter().all(|recipe| recipe.name == "ultralytics-cls"));
    // What no entry fits is looked for in the words.
    assert_eq!(for_model(&recipes, "PaddleDetection").len(), 1);
    assert!(for_model(&recipes, "").is_empty());
}

/// Every built-in recipe can be found by its own name, and says how its output is loaded.
#[test]
fn every_recipe_can_be_found_and_loaded() {
    let recipes = builtin().expect("built-in recipes");
    for recipe in &recipes {
        assert!(!recipe.models.is_empty(), "{}", recipe.name);
        for model in &recipe.models {
            let found = for_model(&recipes, model);
            let is_there = found.iter().any(|r| r.name == recipe.name);
            assert!(is_there, "{}: {model}", recipe.name);
        }
        let load = recipe.load.as_deref().unwrap_or_default();
        assert!(
            load.contains("{weights}") || load.contains("repfuse.fuse(model"),
            "{}: {load}",
            recipe.name
        );
    }
}
