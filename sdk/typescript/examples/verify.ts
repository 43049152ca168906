// Verifies a token on standard input, and says whom it speaks for and who asked for it.
import { text } from "node:stream/consumers";
import { KKPError, TokenVerifier } from "@kkp/client";

const url = process.env.KKP_URL ?? "https://kkp.example";
const verifier = new TokenVerifier({ url, audience: "orders-db" });
try {
  const { sub, act } = await verifier.verify((await text(process.stdin)).trim());
  console.log(`${sub}, asked for by ${act?.sub ?? sub}`);
} catch (error) {
  if (!(error instanceof KKPError)) throw error;
  console.error(`${error.code}: ${error.message}`);
  process.exitCode = 1;
}
