//! The shape of `src/`: imports go only downwards in the map that `src/lib.rs` draws, files stay
//! small, and `unsafe` stays where its invariants are written down.

use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Lines of a file, those of its tests not counted.
const LIMIT: usize = 500;

/// Where `unsafe` may stand: packet memory, rings shared with the kernel, publication, and the
/// system calls that have no safe form.
const UNSAFE: &[&str] = &[
    "frame",
    "xsk",
    "packet",
    "shared",
    "fib::publish",
    "fib::ranked",
    "fib::sparse",
    "steer::link",
    "control::netns",
    "worker::schedule",
];

/// What a source file says that concerns its place.
#[derive(Debug, Default)]
struct Facts {
    /// Top-level modules named by a path from the root of the crate, with the line.
    imports: Vec<(usize, String)>,
    /// Lines with the keyword `unsafe`.
    unsafes: Vec<usize>,
    /// Lines of items compiled for tests only.
    test_lines: usize,
    /// Modules declared for tests only.
    test_modules: Vec<String>,
}

#[derive(Debug)]
struct Source {
    path: PathBuf,
    /// The path of its module below the root: `fib::publish`.
    module: Vec<String>,
    lines: usize,
    facts: Facts,
}

impl Source {
    /// Reads the text of the file at `path`, which is relative to `src/`.
    fn new(path: &Path, text: &str) -> Self {
        let mut module: Vec<String> =
            path.with_extension("").iter().map(|part| part.to_string_lossy().into()).collect();
        module.pop_if(|last| ["mod", "lib", "main"].contains(&last.as_str()));
        let tokens = text.parse().unwrap_or_else(|error| panic!("src/{}: {error}", path.display()));
        let mut facts = Facts::default();
        facts.read(tokens, module.len());
        Self { path: path.into(), module, lines: text.lines().count(), facts }
    }

    fn at(&self, line: usize) -> String {
        format!("src/{}:{line}", self.path.display())
    }
}

impl Facts {
    /// Takes in `tokens`, which stand in a module `depth` levels below the root.
    fn read(&mut self, tokens: TokenStream, depth: usize) {
        let trees: Vec<_> = tokens.into_iter().collect();
        for (at, tree) in trees.iter().enumerate() {
            let (before, after) = (&trees[..at], &trees[at + 1..]);
            match tree {
                TokenTree::Ident(ident) if ident == "unsafe" => self.unsafes.push(line(tree)),
                TokenTree::Ident(ident) if ident == "crate" => self.imports.extend(heads(after)),
                TokenTree::Ident(ident) if ident == "super" && !continues(before) => {
                    let (supers, rest) = climb(after);
                    if supers == depth {
                        self.imports.extend(heads(rest));
                    }
                }
                TokenTree::Punct(punct) if punct.as_char() == '#' => self.read_attribute(tree, after),
                TokenTree::Group(group) => {
                    let inline = matches!(before, [.., TokenTree::Ident(keyword), _] if keyword == "mod");
                    self.read(group.stream(), depth + usize::from(inline));
                }
                _ => {}
            }
        }
    }

    /// Notes the item after an attribute that compiles it for tests only.
    fn read_attribute(&mut self, hash: &TokenTree, after: &[TokenTree]) {
        let [TokenTree::Group(attribute), item @ ..] = after else { return };
        let mut attribute = attribute.stream().into_iter();
        let cfg = attribute.next().is_some_and(|name| name.to_string() == "cfg");
        if !cfg || !asks_for_test(attribute.collect()) {
            return;
        }
        let ends = |tree: &TokenTree| match tree {
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
            tree => tree.to_string() == ";",
        };
        let Some(end) = item.iter().position(ends) else { return };
        self.test_lines += item[end].span().end().line - line(hash) + 1;
        if let [.., TokenTree::Ident(keyword), TokenTree::Ident(name), TokenTree::Punct(_)] = &item[..=end]
            && keyword == "mod"
        {
            self.test_modules.push(name.to_string());
        }
    }
}

fn line(tree: &TokenTree) -> usize {
    tree.span().start().line
}

/// Whether what follows `before` is a later part of a path.
fn continues(before: &[TokenTree]) -> bool {
    before.last().is_some_and(|tree| tree.to_string() == ":")
}

/// What follows `::`, if anything does.
fn after_colons(trees: &[TokenTree]) -> Option<&[TokenTree]> {
    match trees {
        [TokenTree::Punct(a), TokenTree::Punct(b), rest @ ..] if a.as_char() == ':' && b.as_char() == ':' => Some(rest),
        _ => None,
    }
}

/// How many `super` a path has whose first one is before `trees`, and what follows the last one.
fn climb(trees: &[TokenTree]) -> (usize, &[TokenTree]) {
    match after_colons(trees) {
        Some([TokenTree::Ident(ident), rest @ ..]) if ident == "super" => {
            let (supers, rest) = climb(rest);
            (supers + 1, rest)
        }
        _ => (1, trees),
    }
}

/// The first names of the path, or of each path of the group, that goes on with `::`.
fn heads(trees: &[TokenTree]) -> Vec<(usize, String)> {
    let named = |tree: &TokenTree| (line(tree), tree.to_string());
    match after_colons(trees) {
        Some([name @ TokenTree::Ident(_), ..]) => vec![named(name)],
        Some([TokenTree::Group(group), ..]) => {
            let trees: Vec<_> = group.stream().into_iter().collect();
            let paths = trees.split(|tree| tree.to_string() == ",");
            paths.filter_map(|path| path.first()).map(named).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether a `cfg` predicate names `test` outside `not(...)`.
fn asks_for_test(predicate: TokenStream) -> bool {
    let mut negated = false;
    predicate.into_iter().any(|tree| match tree {
        TokenTree::Ident(ident) => {
            negated = ident == "not";
            ident == "test"
        }
        TokenTree::Group(group) => !negated && asks_for_test(group.stream()),
        _ => false,
    })
}

/// The layers that `lib.rs` lists from the top down: each a block of `pub mod` lines.
fn layers(lib: &str) -> Vec<Vec<&str>> {
    let blocks = lib
        .split("\n\n")
        .map(|block| block.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect());
    blocks.filter(|layer: &Vec<_>| !layer.is_empty()).collect()
}

/// The imports of `source` that climb, or that its layer may not have at all.
fn climbing(source: &Source, layers: &[Vec<&str>]) -> Vec<String> {
    let rank = |module: &str| layers.iter().position(|layer| layer.contains(&module));
    let Some(own) = source.module.first() else { return Vec::new() };
    let Some(own_rank) = rank(own) else { return vec![format!("{}: {own} is not in src/lib.rs", source.at(1))] };
    let lowest = own_rank + 1 == layers.len();
    let wrong = |module: &str| rank(module).is_some_and(|rank| rank < own_rank || lowest && module != own);
    let say = |(line, module): &(usize, String)| {
        let rule = if lowest { "its layer imports nothing of ours" } else { "imports go only downwards" };
        format!("{}: {own} imports {module}, but {rule} (see src/lib.rs)", source.at(*line))
    };
    source.facts.imports.iter().filter(|(_, module)| wrong(module)).map(say).collect()
}

/// Whether `source` is the module `name` or inside it.
fn within(source: &Source, name: &str) -> bool {
    let module = source.module.join("::");
    module.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn unsafe_out_of_place(source: &Source) -> Vec<String> {
    if UNSAFE.iter().any(|name| within(source, name)) {
        return Vec::new();
    }
    let lines = source.facts.unsafes.iter();
    lines.map(|&line| format!("{}: `unsafe` is allowed only in {}", source.at(line), UNSAFE.join(", "))).collect()
}

fn too_long(source: &Source) -> Option<String> {
    let lines = source.lines - source.facts.test_lines;
    (lines > LIMIT).then(|| format!("{}: {lines} lines without tests; the limit is {LIMIT}", source.at(source.lines)))
}

/// All source files of the crate.
fn sources() -> Vec<Source> {
    fn visit(root: &Path, folder: &Path, sources: &mut Vec<Source>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(root, &path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                sources.push(Source::new(path.strip_prefix(root).unwrap(), &text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    visit(&root, &root, &mut sources);
    sources
}

fn lib() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap()
}

#[track_caller]
fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn imports_go_only_downwards() {
    let lib = lib();
    let layers = layers(&lib);
    assert!(layers.len() >= 6, "src/lib.rs lists its layers in blocks: {layers:?}");
    let violations: Vec<_> = sources().iter().flat_map(|source| climbing(source, &layers)).collect();
    assert_none(&violations);
}

#[test]
fn unsafe_stays_where_its_invariants_are() {
    let sources = sources();
    assert_none(&sources.iter().flat_map(unsafe_out_of_place).collect::<Vec<_>>());
    for name in UNSAFE {
        let used = sources.iter().any(|source| within(source, name) && !source.facts.unsafes.is_empty());
        assert!(used, "{name} needs no `unsafe` any more: take it off the list");
    }
}

#[test]
fn files_stay_small() {
    let sources = sources();
    let for_tests = |source: &Source| {
        let parent = source.module.split_last();
        parent.is_some_and(|(name, parent)| {
            sources.iter().any(|other| other.module == parent && other.facts.test_modules.contains(name))
        })
    };
    let violations: Vec<_> = sources.iter().filter(|source| !for_tests(source)).filter_map(too_long).collect();
    assert_none(&violations);
}

/// What is wrong with a file, in the crate of `lib`.
fn violations(path: &str, text: &str) -> Vec<String> {
    let lib = "//! Map.\n\n// Top.\npub mod cli;\n\n// Middle.\npub mod fib;\npub mod xsk;\n\n// Low.\npub mod frame;\npub mod wire;\n";
    let source = Source::new(Path::new(path), text);
    let mut all = climbing(&source, &layers(lib));
    all.extend(unsafe_out_of_place(&source));
    all.extend(too_long(&source));
    all
}

#[test]
fn each_way_to_climb_is_caught() {
    let cases = [
        ("fib/mod.rs", "use crate::cli::Args;", 1),
        ("fib/mod.rs", "\nfn f() { crate::cli::run() }", 2),
        ("fib/mod.rs", "use crate::{wire::Mac,\n cli};", 2),
        ("fib/mod.rs", "use super::cli;", 1),
        ("fib/publish.rs", "use super::super::cli::Args;", 1),
        ("fib/publish.rs", "mod tests {\n use super::super::super::{wire, cli}; }", 2),
        ("wire/mod.rs", "use crate::frame::Frame;", 1),
        ("wire/mod.rs", "use crate::xsk::Socket;", 1),
        ("new.rs", "", 1),
    ];
    for (path, text, line) in cases {
        let found = violations(path, text);
        assert_eq!(found.len(), 1, "{path}: {text}: {found:?}");
        assert!(found[0].starts_with(&format!("src/{path}:{line}: ")), "{found:?}");
    }
}

#[test]
fn imports_that_do_not_climb_pass() {
    let cases = [
        ("cli/mod.rs", "use crate::{fib::Fib, wire::{Mac, Vni}};"),
        ("fib/mod.rs", "use crate::xsk::Socket; pub(crate) mod tests { use super::*; }"),
        ("fib/mod.rs", "//! [`crate::cli`]\n// crate::cli\nconst TEXT: &str = \"crate::cli unsafe\";"),
        ("fib/publish.rs", "use super::cli; mod tests { use super::super::cli; }"),
        ("wire/mac.rs", "use crate::wire::Vni; use super::Ecn;"),
        ("main.rs", "use crate::cli;"),
    ];
    for (path, text) in cases {
        assert_eq!(violations(path, text), [""; 0], "{path}: {text}");
    }
}

#[test]
fn unsafe_out_of_place_and_long_files_are_caught() {
    let lines = |n: usize| "\n".repeat(n);
    let tests = format!("#[cfg(all(test, not(loom)))]\nmod tests {{{}}}", lines(400));
    let found =
        violations("fib/mod.rs", &format!("{}fn f() {{ unsafe {{ g() }} }}\n{}{tests}", lines(200), lines(300)));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("src/fib/mod.rs:201: `unsafe`"), "{found:?}");
    assert!(found[1].contains("501 lines"), "{found:?}");
    assert_eq!(violations("xsk/ring.rs", &format!("unsafe fn f() {{}}{}{tests}", lines(499))), [""; 0]);
    assert_eq!(violations("fib/mod.rs", &format!("#[cfg(not(test))]\nmod a {{{}}}", lines(500))).len(), 1);
}
