import { createServer } from "node:http";
import { nodeGuard, TokenVerifier } from "@kkp/client";

const url = process.env.KKP_URL ?? "https://kkp.example";
const verifier = new TokenVerifier({ url, audience: "orders-db" });
const guard = nodeGuard(verifier, { url: "https://orders.example" });
createServer(async (request, response) => {
  const caller = await guard(request, response);
  if (caller) response.end(`Hello ${caller.subject}\n`);
}).listen(Number(process.env.PORT ?? 8080), "127.0.0.1");
