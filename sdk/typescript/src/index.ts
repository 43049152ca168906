/** What `@kkp/client` offers. Everything that is not named here is its own affair and may change. */

export * from "./errors.js";
