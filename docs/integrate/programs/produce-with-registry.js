// Writes one payment: node produce-with-registry.js BOOTSTRAP REGISTRY_URL TOPIC
const { SchemaRegistry } = require("@kafkajs/confluent-schema-registry");
const { CompressionTypes, Kafka, Partitioners } = require("kafkajs");

const [bootstrap, url, topic] = process.argv.slice(2);

async function main() {
  const registry = new SchemaRegistry({ host: url });
  const id = await registry.getLatestSchemaId(`${topic}-value`);
  const kafka = new Kafka({ clientId: "shop", brokers: bootstrap.split(",") });
  const producer = kafka.producer({ idempotent: true, createPartitioner: Partitioners.DefaultPartitioner });
  await producer.connect();
  const payment = {
    payment_id: "from-node-with-registry-1",
    event_time_ms: Date.now(),
    card_id: "card-1",
    merchant_id: "merchant-1",
    amount_minor: 1050,
    currency: "EUR",
  };
  await producer.send({
    topic,
    acks: -1,
    compression: CompressionTypes.GZIP,
    messages: [{ key: payment.card_id, value: await registry.encode(id, payment) }],
  });
  await producer.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
