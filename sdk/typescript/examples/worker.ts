import { fetchGuard, TokenVerifier } from "@kkp/client";

const verifier = new TokenVerifier({ url: "https://kkp.example", audience: "orders-db" });
const guard = fetchGuard(verifier, { url: "https://orders.example" });

export default {
  async fetch(request: Request): Promise<Response> {
    const caller = await guard(request);
    if (caller instanceof Response) return caller;
    return new Response(`Hello ${caller.subject}\n`);
  },
};
