/** The package as a user has it: packed, installed elsewhere, and in a runtime that has the web's names alone. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const DIST = join(ROOT, "dist");

/** Run a program without a standard input, and return what it writes. */
function run(program: string, args: readonly string[], cwd = ROOT): string {
  return execFileSync(program, args, { cwd, stdio: ["ignore", "pipe", "inherit"], encoding: "utf8" });
}

function sources(): readonly (readonly [string, string])[] {
  return readdirSync(DIST).map((name) => [name, readFileSync(join(DIST, name), "utf8")]);
}

test("packed and installed elsewhere, the package is imported as its users import it", () => {
  const directory = mkdtempSync(join(tmpdir(), "kkp-client-"));
  try {
    const pack = ["pack", "--ignore-scripts", "--offline", "--silent", "--pack-destination", directory];
    const archive = run("npm", pack).trim();
    const installed = join(directory, "node_modules", "@kkp", "client");
    mkdirSync(installed, { recursive: true });
    run("tar", ["-xzf", join(directory, archive), "-C", installed, "--strip-components=1"]);
    assert.deepEqual(readdirSync(installed).toSorted(), ["README.md", "dist", "package.json"]);
    const program = 'import { TokenVerifier } from "@kkp/client"; console.log(typeof TokenVerifier);';
    writeFileSync(join(directory, "program.mjs"), program);
    const answer = run(process.execPath, ["program.mjs"], directory);
    assert.equal(answer, "function\n");
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test("the package depends on nothing", () => {
  const { dependencies, peerDependencies } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
  assert.equal(dependencies, undefined);
  assert.equal(peerDependencies, undefined);
});

test("the lock names no registry", () => {
  const lock = readFileSync(join(ROOT, "package-lock.json"), "utf8");
  assert.ok(!lock.includes("resolved"));
  assert.ok(!/https?:\/\/(?!opencollective|github)[^"]*registry/.test(lock));
});

test("nothing of Node's is imported or named, in the types either", () => {
  assert.ok(sources().length > 20);
  for (const [name, text] of sources()) {
    assert.ok(!/(?:from|import)\s*\(?\s*["'](?!\.\/)/.test(text), `${name} imports another package`);
    assert.ok(
      !/\b(?:process|Buffer|require|__dirname|NodeJS|setImmediate)\b\s*[.(]/.test(text),
      `${name} is for Node`,
    );
  }
});

test("the types are whole with Node's alone, and with the web's alone", () => {
  const [tsc, index] = [join(ROOT, "node_modules/.bin/tsc"), join(DIST, "index.d.ts")];
  const flags = ["--ignoreConfig", "--noEmit", "--strict", "--module", "nodenext", "--target", "es2022"];
  run(tsc, [...flags, "--lib", "es2022", "--types", "node", index]);
  run(tsc, [...flags, "--lib", "es2022,dom", "--types", "", index]);
});

test("in a context that has the web's names alone, a token verifies", () => {
  const program = fileURLToPath(new URL("edge.js", import.meta.url));
  const flags = ["--experimental-vm-modules", "--no-warnings"];
  assert.equal(run(process.execPath, [...flags, program]), "orders\nhello\n");
});
