//! Files with graphs in them: opened, counted, run and compared.

use std::path::Path;

use ndarray::ArrayD;
use repfuse::graph::{Graph, GraphFile, Op};
use repfuse::network::graphs::{Named, Network};

/// What is counted: convs, linear layers, norms, and other nodes that are linear.
pub type Counts = [usize; 4];

pub fn open(path: &Path) -> GraphFile {
    let file = GraphFile::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.unwrap_or_else(|| panic!("{} is a graph", path.display()))
}

pub fn counts(path: &Path) -> Counts {
    counted(open(path).graph())
}

pub fn counted(graph: &Graph) -> Counts {
    let mut counts = [0; 4];
    for node in graph.nodes() {
        match &node.op {
            Op::Conv(_) => counts[0] += 1,
            Op::Linear(_) => counts[1] += 1,
            Op::Norm(_) => counts[2] += 1,
            Op::Shape | Op::Mean { .. } | Op::Opaque(_) => {}
            _ => counts[3] += 1,
        }
    }
    counts
}

pub fn run(path: &Path, x: &ArrayD<f64>) -> Vec<ArrayD<f64>> {
    let network = Network::open(path).expect("rten opens it");
    let inputs: Vec<Named> = vec![(
        network.inputs().expect("it has an input").remove(0),
        x.clone(),
    )];
    let outputs = network.run(&inputs).expect("rten runs it");
    outputs.into_iter().map(|(_, array)| array).collect()
}

/// The same where rten has all operators of the network.
pub fn run_if_it_can(path: &Path, x: &ArrayD<f64>) -> Option<Vec<ArrayD<f64>>> {
    let network = Network::open(path).ok()?;
    let input = network.inputs().expect("it has an input").remove(0);
    let outputs = network.run(&[(input, x.clone())]).ok()?;
    Some(outputs.into_iter().map(|(_, array)| array).collect())
}

/// The largest difference, in parts of the largest number.
pub fn apart(a: &[ArrayD<f64>], b: &[ArrayD<f64>]) -> f64 {
    assert_eq!(a.len(), b.len());
    let of = |(a, b): (&ArrayD<f64>, &ArrayD<f64>)| {
        assert_eq!(a.shape(), b.shape());
        let largest = a.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let difference = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        difference.fold(
            0.0f64,
            |most, x| if x > most || x.is_nan() { x } else { most },
        ) / largest
    };
    a.iter().zip(b).map(of).fold(0.0, f64::max)
}
